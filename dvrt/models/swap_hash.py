"""The hash model with swapping: the backing is another hash model that never computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dvrt.models.hash_model import HashModel
from dvrt.models.spec import StageSpec
from dvrt.models.swap import SlotRange, SwappingModel


class HashBacking:
    """See ``Backing``."""

    def __init__(self, device: HashModel, host: HashModel) -> None:
        self._device = device
        self._host = host

    @property
    def nbytes(self) -> int:
        return self._host.kv_bytes

    def release(self) -> None:
        self._host.release()

    def copy_in(self, row: int, slot: int, start: int, stop: int) -> None:
        self._device.entries(row, start, stop)[:] = self._host.entries(slot, start, stop)

    def copy_out(self, slot: int, row: int, start: int, stop: int) -> None:
        self._host.entries(slot, start, stop)[:] = self._device.entries(row, start, stop)

    def blank(self, row: int, start: int, stop: int) -> None:
        self._device.entries(row, start, stop)[:] = 0

    def computed(self, frame: int) -> None:
        """Nothing: a call that returned has computed."""

    def fork(self, source: int, target: int, n_tokens: int) -> None:
        self._host.fork(source, target, n_tokens)

    def scrub(self, slot: int) -> None:
        self._host.scrub(slot)

    def pack(self, ranges: Sequence[SlotRange], first: int, last: int) -> Any:
        return self._host.pack(ranges, first, last)

    def unpack(self, slot: int, start: int, stop: int, first: int, last: int, buffer: Any) -> None:
        self._host.unpack(slot, start, stop, first, last, buffer)


def swapping_hash_model(spec: StageSpec, vocab_size: int) -> SwappingModel:
    """The hash model of ``spec``, whose device holds ``spec.device_slots`` of its microbatches."""

    def model(microbatches: int) -> HashModel:
        return HashModel(
            first_layer=spec.first,
            stop_layer=spec.stop,
            n_slots=microbatches * spec.batch_size,
            batch_size=spec.batch_size,
            max_context=spec.max_context,
            vocab_size=vocab_size,
        )

    device = model(spec.device_slots)
    return SwappingModel(
        device,
        HashBacking(device, model(spec.n_microbatches)),
        n_frames=spec.device_slots,
        n_microbatches=spec.n_microbatches,
        batch_size=spec.batch_size,
    )
