"""Blocks, runs and tiles move the same bytes; the kernels compile for every GPU we name."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.buffers import MemoryKind, Region
from dvrt.cuda.packing import kernel_names, kernel_source, move_blocks, move_runs, tiles
from dvrt.cuda.tensors import as_tensor
from dvrt.strided import RunPairs, StridedCopy, fold, pair_runs


@st.composite
def blocks(draw):
    """A block whose runs overlap on neither side: an array and a transposed array of it."""
    run = draw(st.integers(1, 40))
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))

    def side():
        order = draw(st.permutations(range(len(shape))))
        strides, step = [0] * len(shape), run
        for axis in order:
            step += draw(st.integers(0, 9))
            strides[axis] = step
            step *= shape[axis]
        return draw(st.integers(0, 9)), tuple(strides)

    (source, source_strides), (target, target_strides) = side(), side()
    return StridedCopy(
        run_bytes=run,
        shape=shape,
        source_offset=source,
        source_strides=source_strides,
        target_offset=target,
        target_strides=target_strides,
    )


def moved(block_list, move):
    sources = max(b.source_extent[1] for b in block_list)
    targets = max(b.target_extent[1] for b in block_list)
    source = np.random.default_rng(1).integers(0, 256, sources, np.uint8)
    target = np.zeros(targets, np.uint8)
    move(memoryview(target), memoryview(source))
    return target


@settings(max_examples=150)
@given(blocks())
def test_a_block_moves_what_its_runs_move(block):
    by_runs = moved([block], lambda t, s: move_runs(t, s, pair_runs([block])))
    by_block = moved([block], lambda t, s: move_blocks(t, s, [block]))
    folded = moved([block], lambda t, s: move_runs(t, s, pair_runs([fold(block)])))
    assert np.array_equal(by_runs, by_block)
    assert np.array_equal(by_runs, folded)
    assert fold(block).n_runs <= block.n_runs


@given(st.permutations(range(20)), st.integers(1, 33), st.booleans(), st.integers(0, 3))
def test_many_scattered_runs_of_one_size_move_at_once(places, size, is_gather, shift):
    scattered = [place * size + (shift if place == 19 else 0) for place in places]
    block_list = [
        StridedCopy(
            run_bytes=size,
            shape=(),
            source_offset=a if is_gather else b,
            source_strides=(),
            target_offset=b if is_gather else a,
            target_strides=(),
        )
        for a, b in zip(scattered, range(0, 20 * size, size), strict=True)
    ]
    by_runs = moved(block_list, lambda t, s: move_runs(t, s, pair_runs(block_list)))
    assert np.array_equal(by_runs, moved(block_list, lambda t, s: move_blocks(t, s, block_list)))


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 30_000)), min_size=1, max_size=5),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
    st.integers(0, 64),
)
def test_tiles_are_the_runs_in_aligned_units(spaces, scale, address):
    offset, offsets, sizes = 0, [], []
    for gap, size in spaces:
        offset += gap * scale
        offsets.append(offset)
        sizes.append(size * scale)
        offset += size * scale
    runs = RunPairs(
        np.array(offsets), np.cumsum([0, *sizes[:-1]]).astype(np.int64), np.array(sizes)
    )
    made = tiles(runs, source_address=address * 16, target_address=512)
    assert made.unit >= min(scale, 16)
    assert made.kernel in kernel_names()
    assert int(made.units.max()) * made.unit <= 8192
    assert not ((made.source + address * 16) % made.unit).any()
    assert made.total_units * made.unit == sum(sizes)
    size = int(max(runs.source[-1], runs.target[-1]) + sizes[-1])
    source = np.random.default_rng(2).integers(0, 256, size, np.uint8)
    whole, tiled = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    move_runs(memoryview(whole), memoryview(source), runs)
    as_runs = RunPairs(made.source, made.target, made.units * made.unit)
    move_runs(memoryview(tiled), memoryview(source), as_runs)
    assert np.array_equal(whole, tiled)


@pytest.mark.parametrize("n", [1, 8, 20])
def test_a_block_outside_its_buffer_is_refused(n):
    def block(offset):
        return StridedCopy(
            run_bytes=4,
            shape=(),
            source_offset=offset,
            source_strides=(),
            target_offset=0,
            target_strides=(),
        )

    for offset in (-4, 8, 5):
        with pytest.raises(ValueError, match="outside"):
            move_blocks(memoryview(bytearray(80)), memoryview(bytes(8)), [block(offset)] * n)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_without_a_warning(architecture, tmp_path):
    source = tmp_path / "packing.cu"
    source.write_text(kernel_source())
    cubin = tmp_path / "packing.cubin"
    command = ["nvcc", "-std=c++17", "-cubin", f"-arch={architecture}", "-Werror=all-warnings"]
    made = subprocess.run(
        [*command, "-o", str(cubin), str(source)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    text = cubin.read_bytes()
    assert all(name.encode() in text for name in kernel_names())


def test_the_kernels_need_no_headers():
    """What CuPy compiles at run time has no include path of ours."""
    assert "#include" not in kernel_source()
    assert Path("cuda/packing.cu").read_text() == kernel_source()


def test_a_region_becomes_a_tensor_without_a_copy():
    torch = pytest.importorskip("torch")
    array = np.zeros(64, np.uint8)
    region = Region(array.ctypes.data, 64, MemoryKind.HOST, array)
    tensor = as_tensor(region, (2, 8), torch.float32)
    tensor[1, 0] = 1.0
    assert array[32:36].view(np.float32)[0] == 1.0
    with pytest.raises(ValueError, match="128 bytes; the region 64"):
        as_tensor(region, (4, 8), torch.float32)
