"""The backing of a CUDA stage: pageable host memory behind pinned staging, copies on side streams.

Written for a GPU and not yet run on one.
"""

from __future__ import annotations

import torch

from dvrt.models.arena import Arena, Entries
from dvrt.models.swap_arena import ArenaBacking


class CudaBacking(ArenaBacking):
    """See ``Backing``. One direction's copies come one at a time, each on a thread that may wait.

    A copy waits on its stream for what was computed on its frame; compute is only given a frame
    whose copies have returned, so it need not wait for them.
    """

    def __init__(
        self, device: Arena, host: Arena, *, first_layer: int, n_frames: int, batch_size: int
    ) -> None:
        super().__init__(device, host, first_layer=first_layer)
        where = device.storage.device
        self._batch_size = batch_size
        self._streams = {"in": _stream(where), "out": _stream(where)}
        self._computed = [_event() for _ in range(n_frames)]
        slot_bytes = device.nbytes // device.keys.shape[1]
        self._staging = {
            name: torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=True)
            for name in self._streams
        }

    @property
    def staging_bytes(self) -> int:
        """Pinned host memory; as much again may be taken on the device while a copy runs."""
        return sum(staging.nbytes for staging in self._staging.values())

    def release(self) -> None:
        super().release()
        self._staging.clear()

    def computed(self, frame: int) -> None:
        self._computed[frame].record()

    @torch.inference_mode()
    def copy_in(self, row: int, slot: int, start: int, stop: int) -> None:
        self._move(
            "in", row, self._host.entries(slot, start, stop), self._device.entries(row, start, stop)
        )

    @torch.inference_mode()
    def copy_out(self, slot: int, row: int, start: int, stop: int) -> None:
        self._move(
            "out",
            row,
            self._device.entries(row, start, stop),
            self._host.entries(slot, start, stop),
        )

    @torch.inference_mode()
    def blank(self, row: int, start: int, stop: int) -> None:
        """On the copies' stream: behind what is computed on the frame, done when it returns."""
        stream = self._streams["in"]
        stream.wait_event(self._computed[row // self._batch_size])
        with torch.cuda.stream(stream):
            super().blank(row, start, stop)
        stream.synchronize()

    def _move(self, direction: str, row: int, source: Entries, target: Entries) -> None:
        """Gather where the entries are, one move over the link a tensor, scatter where they go."""
        stream = self._streams[direction]
        stream.wait_event(self._computed[row // self._batch_size])
        with torch.cuda.stream(stream):
            for taken, put in zip(source, target, strict=True):
                size = taken.numel() * taken.element_size()
                staged = self._staging[direction][:size].view(taken.dtype).view(taken.shape)
                staged.copy_(taken.contiguous() if direction == "out" else taken, non_blocking=True)
                if direction == "out":
                    stream.synchronize()
                    put.copy_(staged)
                else:
                    put.copy_(staged.to(put.device, non_blocking=True))
                    stream.synchronize()


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
