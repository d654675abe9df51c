"""What ``dvrt doctor`` looks at; each check says what it found and what would bring the rest.

Nothing of this changes anything, and only the checks of devices and of exactness import torch.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from dvrt.transport import known_schemes

REQUIRED = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "msgpack", "pydantic"),
    *("starlette", "uvicorn", "xxhash"),
)
_BRING_UCX = "pip install 'dvrt[ucx]'"
OPTIONAL: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("uvloop", ("uvloop",), "faster event loops", "pip install uvloop"),
    ("cupy", ("cupy-cuda12x", "cupy-cuda13x"), "NVIDIA GPUs", "pip install 'dvrt[cuda12]'"),
    ("ucxx", ("ucxx-cu12", "ucxx-cu13"), "UCX between hosts", _BRING_UCX),
)
"""(what, the packages that it comes in, what it is for, what brings it)."""
WANTED_FILES = 4096
WANTED_SHM_BYTES = 1 << 30
WANTED_LOCK_BYTES = 1 << 30
_RUN_S = 20.0
_UCX_VERSION = (1, 19)
"""The oldest that ucxx works with."""
_BUILD_COPIES = "apt install gcc python3-dev  # and install dvrt again; on x86-64"
_BRING_RDMA = "conda install -c conda-forge ucx rdma-core ucxx"
_LOAD_UCX = """
import ctypes
try:
    from libucx import load_library
    load_library()
except ImportError:
    pass
ucp = ctypes.CDLL("libucp.so.0")
ucp.ucp_get_version_string.restype = ctypes.c_char_p
found = [line.split()[-1] for line in open("/proc/self/maps") if "libucp" in line]
print(ucp.ucp_get_version_string().decode(), found[0], flush=True)
config, context = ctypes.c_void_p(), ctypes.c_void_p()
parameters = (ctypes.c_uint64 * 32)(1, 1)  # of all fields only the features: tagged messages
ucp.ucp_config_read(None, None, ctypes.byref(config))
if ucp.ucp_init_version(1, 10, parameters, config, ctypes.byref(context)) == 0:
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    out = ctypes.c_void_p(libc.fdopen(1, b"w"))
    ucp.ucp_context_print_info(context, out)
    libc.fflush(out)
"""
"""For a process of its own: loads what ucxx would, and says version, place and resources."""


class State(Enum):
    OK = "ok"
    MISSING = "missing"
    """Something more could be had."""
    LOW = "low"
    """It works, with less than it should have."""
    BROKEN = "broken"
    """dvrt does not work, or not as it promises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; ``remedy`` is a command, or empty."""

    name: str
    state: State
    value: str
    remedy: str = ""


def _finding(name: str, is_fine: bool, value: str, remedy: str, other: State) -> Finding:
    if is_fine:
        return Finding(name=name, state=State.OK, value=value)
    return Finding(name=name, state=other, value=value, remedy=remedy)


def packages() -> Iterator[Finding]:
    """Versions of what dvrt builds on."""
    for name in REQUIRED:
        version = _version(name)
        value = version or "not installed"
        yield _finding(name, version is not None, value, f"pip install {name}", State.BROKEN)
    for what, names, purpose, remedy in OPTIONAL:
        found = [f"{name} {version}" for name in names if (version := _version(name))]
        value = ", ".join(found) or f"not installed; for {purpose}"
        is_fine = bool(found) or (what == "ucxx" and not _has_ucx())
        yield _finding(what, is_fine, value, remedy, State.MISSING)
    is_native = find_spec("dvrt._streaming_copy") is not None
    value = "past the caches" if is_native else "as numpy does; half as fast again if compiled"
    yield _finding("large copies", is_native, value, _BUILD_COPIES, State.MISSING)


def _has_ucx() -> bool:
    """Whether this dvrt has a transport that would use it."""
    return "ucx" in known_schemes()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def ucx() -> Iterator[Finding]:
    """The UCX that ucxx would load, and the transports that it finds devices for."""
    told = _output(sys.executable, "-c", _LOAD_UCX)
    version, _, library = told.partition("\n")[0].partition(" ")
    if not library:
        value = "none can be loaded; tcp and shm are used"
        yield _finding("UCX", not _has_ucx(), value, _BRING_UCX, State.MISSING)
        return
    is_new = tuple(int(part) for part in version.split(".")[:2]) >= _UCX_VERSION
    value = f"{version} from {library}" + ("" if is_new else "; ucxx wants a newer one")
    yield _finding("UCX", is_new or not _has_ucx(), value, _BRING_UCX, State.MISSING)
    transports = sorted(set(re.findall(r"resource\s+\d+\s*:.*\s(\S+)/\S+\s*$", told, re.MULTILINE)))
    has_rdma = any(name.startswith(("rc", "dc", "ud")) for name in transports)
    value = (", ".join(transports) or "none") + ("" if has_rdma else "; no RDMA")
    is_fine = has_rdma or not _has_ucx()
    yield _finding("UCX transports", is_fine, value, _BRING_RDMA, State.MISSING)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RUN_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def devices() -> Iterator[Finding]:
    """GPUs that torch can use, and which of them reach each other's memory."""
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        has_driver = Path("/proc/driver/nvidia/version").exists()
        remedy = "pip install torch --index-url https://download.pytorch.org/whl/cu126"
        yield _finding(
            "CUDA devices",
            not has_driver,
            "a driver, but torch cannot use it" if has_driver else "none; the CPU computes",
            remedy,
            State.LOW,
        )
        return
    count = torch.cuda.device_count()
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        value = f"{about.name}, {_size(about.total_memory)}, sm_{about.major}{about.minor}"
        yield Finding(name=f"cuda:{index}", state=State.OK, value=value)
    apart = [
        f"{a}-{b}"
        for a in range(count)
        for b in range(count)
        if a != b and not torch.cuda.can_device_access_peer(a, b)
    ]
    if count > 1:
        value = f"not {', '.join(apart)}: through the host" if apart else "all of them"
        yield _finding("peer access", not apart, value, "nvidia-smi topo -p2p r", State.LOW)


def limits() -> Iterator[Finding]:
    """What the system grants a process."""
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    yield _finding(
        "locked memory",
        _is_at_least(locked, WANTED_LOCK_BYTES),
        f"{_limit(locked, _size)}; for pinned staging and RDMA",
        "ulimit -l unlimited",
        State.LOW,
    )
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield _finding(
        "open files",
        _is_at_least(files, WANTED_FILES),
        f"{_limit(files, str)} of at most {_limit(most, str)}",
        f"ulimit -n {WANTED_FILES if not _is_at_least(most, 1 << 16) else 1 << 16}",
        State.LOW,
    )
    yield shared_memory(Path("/dev/shm"))


def shared_memory(place: Path) -> Finding:
    """UCX and others keep shared memory there; dvrt's own needs no file system."""
    try:
        about = os.statvfs(place)
    except OSError:
        value, free = "not mounted", 0
    else:
        free = about.f_bavail * about.f_frsize
        value = f"{_size(free)} free of {_size(about.f_blocks * about.f_frsize)}"
    return _finding(
        str(place),
        free >= WANTED_SHM_BYTES,
        value,
        f"mount -o remount,size=8g {place}  # docker run --shm-size=8g",
        State.LOW,
    )


def exactness() -> Iterator[Finding]:
    """Compute a tiny model's rows in several ways on this machine's BLAS, with one thread."""
    from dvrt.models.check import inspect_checkpoint
    from dvrt.models.runner import StageRunner
    from dvrt.models.selfcheck import check_exactness
    from dvrt.models.spec import StageSpec
    from dvrt.models.tiny import write_tiny

    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as scratch:
            model = inspect_checkpoint(write_tiny(Path(scratch) / "tiny", "llama", n_layers=1))
            spec = StageSpec(
                directory=str(model.directory),
                first=0,
                stop=model.n_layers,
                n_layers=model.n_layers,
                dtype=dtype,
                n_microbatches=1,
                batch_size=8,
                max_context=256,
            )
            found = check_exactness(StageRunner(spec))
        value = "bit-identical" if found.holds else f"rows change with {', '.join(found.broken)}"
        yield _finding(
            f"exact mode, {dtype}", found.holds, value, "dvrt launch --no-exact ...", State.BROKEN
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (packages, ucx, devices, limits)
"""Those that are quick; ``exactness`` computes."""


def _is_at_least(limit: int, wanted: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= wanted


def _limit(limit: int, show: Callable[[int], str]) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else show(limit)


def _size(nbytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"
