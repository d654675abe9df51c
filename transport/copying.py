"""Copying bytes: in the caches, or past them into memory that is not read again soon."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_copy_past_caches: Callable[[memoryview, memoryview], None] | None
try:
    from dvrt._streaming_copy import copy as _native
except ImportError:  # built without a C compiler, or for another kind of processor
    _copy_past_caches = None
else:
    _copy_past_caches = _native

RELEASED_BYTES = 1 << 20
"""A copy of so much lets other threads run meanwhile; for smaller ones that costs too much."""


def is_native() -> bool:
    """Whether this dvrt was built with copies that bypass the caches."""
    return _copy_past_caches is not None


def copy(source: memoryview, target: memoryview) -> None:
    """Fill ``target`` with ``source``, which is as large."""
    if source.nbytes < RELEASED_BYTES:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def copy_past_caches(source: memoryview, target: memoryview) -> None:
    """As ``copy``, for memory that does not overlap; beyond the size of the caches it is half as
    fast again, and within them, or where the bytes are read at once, slower."""
    if _copy_past_caches is None:
        copy(source, target)
    else:
        _copy_past_caches(target, source)
