"""Regions: contiguous bytes in some memory, named without copying them.

A Region says where bytes are and keeps their owner alive. Transports read and write regions and
know nothing of what they hold.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import Enum
from typing import Any


class MemoryKind(Enum):
    HOST = "host"
    PINNED = "pinned"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class Region:
    """``nbytes`` contiguous bytes at ``address``; ``owner`` is kept alive as long as the region."""

    address: int
    nbytes: int
    kind: MemoryKind = MemoryKind.HOST
    owner: Any = None

    @classmethod
    def of(cls, source: Any) -> Region:
        """The region of a bytes-like object, a NumPy array, or a contiguous torch or CuPy array.

        Raises TypeError for anything else and ValueError for memory that is not contiguous.
        """
        if isinstance(source, Region):
            return source
        if hasattr(source, "data_ptr"):
            return cls._of_tensor(source)
        if hasattr(source, "__cuda_array_interface__"):
            return cls._of_cuda_array(source)
        try:
            view = memoryview(source)
        except TypeError:
            raise TypeError(f"no region of a {type(source).__name__}") from None
        return cls._of_view(view)

    @classmethod
    def _of_tensor(cls, tensor: Any) -> Region:
        if not tensor.is_contiguous():
            raise ValueError("a region is contiguous; gather the tensor first")
        size = tensor.numel() * tensor.element_size()
        kind = MemoryKind.CUDA if tensor.device.type == "cuda" else MemoryKind.HOST
        return cls(tensor.data_ptr(), size, kind, tensor)

    @classmethod
    def _of_cuda_array(cls, array: Any) -> Region:
        interface = array.__cuda_array_interface__
        if interface.get("strides") is not None:
            raise ValueError("a region is contiguous; gather the array first")
        return cls(interface["data"][0], array.nbytes, MemoryKind.CUDA, array)

    @classmethod
    def _of_view(cls, view: memoryview) -> Region:
        if not view.contiguous:
            raise ValueError("a region is contiguous; gather the array first")
        flat = view.cast("B") if view.nbytes else memoryview(b"")
        if flat.readonly or not flat.nbytes:
            # ctypes takes no address of read-only memory; a Region of bytes keeps the view itself.
            return cls(0, flat.nbytes, MemoryKind.HOST, flat)
        address = ctypes.addressof(ctypes.c_char.from_buffer(flat))
        return cls(address, flat.nbytes, MemoryKind.HOST, flat)

    def view(self) -> memoryview:
        """The bytes as a flat memoryview; only for memory that the host can read."""
        if self.kind is MemoryKind.CUDA:
            raise TypeError("the host cannot read a CUDA region; copy it to staging first")
        if isinstance(self.owner, memoryview):
            return self.owner
        if not self.nbytes:
            return memoryview(b"")
        return memoryview((ctypes.c_char * self.nbytes).from_address(self.address)).cast("B")

    def part(self, start: int, nbytes: int) -> Region:
        """The region ``[start, start + nbytes)`` of this one."""
        if start < 0 or nbytes < 0 or start + nbytes > self.nbytes:
            raise ValueError(f"[{start}, {start + nbytes}) is outside a region of {self.nbytes}")
        if isinstance(self.owner, memoryview):
            return Region._of_view(self.owner[start : start + nbytes])
        return Region(self.address + start, nbytes, self.kind, self.owner)
