"""Regions as torch tensors and back, without a copy. torch is imported when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dvrt.buffers import MemoryKind, Region

if TYPE_CHECKING:
    import torch


class _CudaBytes:
    """What torch needs to see device memory as its own: CUDA's array interface."""

    def __init__(self, region: Region) -> None:
        self.owner = region
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (region.nbytes,),
            "typestr": "|u1",
            "data": (region.address, False),
            "strides": None,
            "version": 3,
        }


def as_tensor(region: Region, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The region as a tensor that shares its memory; keeps the region's owner alive.

    Raises ValueError when the shape has another size, the memory does not fit the type, or it is
    another device's than the current one.
    """
    import torch

    size = math.prod(shape) * dtype.itemsize
    if size != region.nbytes:
        raise ValueError(f"{tuple(shape)} of {dtype} is {size} bytes; the region {region.nbytes}")
    if region.kind is MemoryKind.CUDA:
        flat = torch.as_tensor(_CudaBytes(region), device="cuda")
        if flat.data_ptr() != region.address:  # torch has copied it to the current device
            raise ValueError("this memory is another device's; make that one the current device")
        return flat.view(dtype).view(*shape)
    flat = torch.frombuffer(region.view(), dtype=torch.uint8)
    tensor = flat.view(dtype).view(*shape)
    tensor._dvrt_owner = region.owner  # type: ignore[attr-defined]
    return tensor
