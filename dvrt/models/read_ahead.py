"""A checkpoint's bytes in the host's page cache, before anybody loads them.

Only a hint: the kernel gives the memory to others when they need it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PIECE_BYTES = 64 << 20
"""So much is asked for at once; between pieces it can be ended."""


def read_ahead(directory: Path, *, is_over: Callable[[], bool] = lambda: False) -> int:
    """Have the checkpoint's tensors read; the bytes asked for, 0 if memory does not permit.

    Ends early when ``is_over`` says so. Raises OSError for files that cannot be read.
    """
    files = sorted(directory.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) > available_bytes():
        return 0
    done = 0
    for file in files:
        with file.open("rb", buffering=0) as opened:
            for start in range(0, file.stat().st_size, PIECE_BYTES):
                if is_over():
                    return done
                os.posix_fadvise(opened.fileno(), start, PIECE_BYTES, os.POSIX_FADV_WILLNEED)
                done += min(PIECE_BYTES, file.stat().st_size - start)
    return done


def available_bytes() -> int:
    """Memory that could be had without swapping, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
