"""A checkpoint's stage with swapping: the backing is an arena in host memory, pinned for CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dvrt.models.arena import Arena
from dvrt.models.runner import StageRunner
from dvrt.models.spec import StageSpec
from dvrt.models.swap import SlotRange, SwappingModel
from dvrt.models.swap_trial import try_swapping
from dvrt.models.weights import Progress


class ArenaBacking:
    """See ``Backing``. Device memory and host memory are two arenas; copies are PyTorch's.

    They hold the layers from ``first_layer`` of the model on.
    """

    def __init__(self, device: Arena, host: Arena, *, first_layer: int) -> None:
        self._device, self._host = device, host
        self._first_layer = first_layer

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    def release(self) -> None:
        self._host.release()

    @torch.inference_mode()
    def copy_in(self, row: int, slot: int, start: int, stop: int) -> None:
        self._device.write(row, start, self._host.entries(slot, start, stop))

    @torch.inference_mode()
    def copy_out(self, slot: int, row: int, start: int, stop: int) -> None:
        self._host.write(slot, start, self._device.entries(row, start, stop))

    @torch.inference_mode()
    def blank(self, row: int, start: int, stop: int) -> None:
        for entries in self._device.entries(row, start, stop):
            entries.zero_()

    def computed(self, frame: int) -> None:
        """Nothing: a call that returned has computed."""

    @torch.inference_mode()
    def fork(self, source: int, target: int, n_tokens: int) -> None:
        self._host.fork(source, target, n_tokens)

    @torch.inference_mode()
    def scrub(self, slot: int) -> None:
        self._host.scrub(slot)

    @torch.inference_mode()
    def pack(self, ranges: Sequence[SlotRange], first: int, last: int) -> Any:
        mine = self._first_layer
        packed = self._host.pack(ranges, first - mine, last - mine)
        return packed.view(torch.uint8).numpy()

    @torch.inference_mode()
    def unpack(self, slot: int, start: int, stop: int, first: int, last: int, buffer: Any) -> None:
        mine = self._first_layer
        writable = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
        packed = torch.frombuffer(writable, dtype=self._host.storage.dtype)
        self._host.unpack(slot, start, stop, first - mine, last - mine, packed)


def swapping_runner(spec: StageSpec, progress: Progress | None = None) -> SwappingModel:
    """The stage of ``spec``, whose device holds ``spec.device_slots`` of its microbatches.

    Raises ModelError as StageRunner does, and where the host has no memory for the backing.
    """
    return swap_runner(StageRunner(spec.on_device(), progress), spec)


def swap_runner(runner: StageRunner, spec: StageSpec) -> SwappingModel:
    """``runner``, made by ``spec.on_device()``, with a backing for all microbatches of ``spec``."""
    device = runner.arena
    host = Arena(
        n_layers=spec.stop - spec.first,
        n_slots=spec.n_slots,
        max_context=spec.max_context,
        chunk_tokens=spec.chunk_tokens,
        geometry=device.geometry,
        dtype=device.storage.dtype,
        device=torch.device("cpu"),
    )
    backing = _backing(device, host, spec)
    return SwappingModel(
        runner,
        backing,
        n_frames=spec.device_slots,
        n_microbatches=spec.n_microbatches,
        batch_size=spec.batch_size,
        trial=try_swapping(runner, backing),
    )


def _backing(device: Arena, host: Arena, spec: StageSpec) -> ArenaBacking:
    if device.storage.device.type != "cuda":
        return ArenaBacking(device, host, first_layer=spec.first)
    from dvrt.models.swap_cuda import CudaBacking

    return CudaBacking(
        device,
        host,
        first_layer=spec.first,
        n_frames=spec.device_slots,
        batch_size=spec.batch_size,
    )
