// Moves runs of bytes between two buffers of one address space: device memory, or pinned host
// memory that the device sees. Run i is units[i] units from source + source_offset[i] to
// target + target_offset[i]; offsets are in bytes, everything is aligned to the unit.
//
// move_short: one thread a unit, for many short runs of one length (16-byte key lanes).
// move_long:  one warp a run, for anything else; the host cuts runs so that warps share the work.

struct alignas(16) Unit16 { unsigned int words[4]; };

template <typename Unit>
__device__ __forceinline__ const Unit* at(const char* base, long long offset) {
    return reinterpret_cast<const Unit*>(base + offset);
}

template <typename Unit>
__device__ __forceinline__ Unit* at(char* base, long long offset) {
    return reinterpret_cast<Unit*>(base + offset);
}

template <typename Unit>
__device__ __forceinline__ void move_short(
    const char* source, char* target, const long long* source_offset,
    const long long* target_offset, unsigned int n_runs, unsigned int run_units) {
    const unsigned int total = n_runs * run_units;
    const unsigned int step = gridDim.x * blockDim.x;
    for (unsigned int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const unsigned int run = i / run_units;
        const unsigned int unit = i - run * run_units;
        at<Unit>(target, target_offset[run])[unit] = at<Unit>(source, source_offset[run])[unit];
    }
}

template <typename Unit>
__device__ __forceinline__ void move_long(
    const char* source, char* target, const long long* source_offset,
    const long long* target_offset, const long long* units, long long n_runs) {
    const unsigned int lane = threadIdx.x % 32;
    const long long warps = static_cast<long long>(gridDim.x) * (blockDim.x / 32);
    long long run = static_cast<long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    for (; run < n_runs; run += warps) {
        const Unit* from = at<Unit>(source, source_offset[run]);
        Unit* to = at<Unit>(target, target_offset[run]);
        const long long count = units[run];
        long long i = lane;
        for (; i + 96 < count; i += 128) {  // four loads in flight before the first store
            const Unit a = from[i], b = from[i + 32], c = from[i + 64], d = from[i + 96];
            to[i] = a;
            to[i + 32] = b;
            to[i + 64] = c;
            to[i + 96] = d;
        }
        for (; i < count; i += 32) to[i] = from[i];
    }
}

#define KERNELS(SIZE, UNIT)                                                                      \
    extern "C" __global__ void move_short_##SIZE(                                                \
        const char* source, char* target, const long long* source_offset,                        \
        const long long* target_offset, unsigned int n_runs, unsigned int run_units) {           \
        move_short<UNIT>(source, target, source_offset, target_offset, n_runs, run_units);       \
    }                                                                                            \
    extern "C" __global__ void move_long_##SIZE(                                                 \
        const char* source, char* target, const long long* source_offset,                        \
        const long long* target_offset, const long long* units, long long n_runs) {              \
        move_long<UNIT>(source, target, source_offset, target_offset, units, n_runs);            \
    }

KERNELS(16, Unit16)
KERNELS(8, unsigned long long)
KERNELS(4, unsigned int)
KERNELS(2, unsigned short)
KERNELS(1, unsigned char)
