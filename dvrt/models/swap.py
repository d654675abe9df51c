"""A stage's model whose device holds a few microbatches only; the host's backing holds them all.

The backing is the record, the device's frames are a cache of it. ``prepare`` and the copies may be
called from any thread while the compute thread computes on other frames; without them the compute
thread copies for itself what it needs, and the result is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dvrt.buffers import Region
from dvrt.errors import ProtocolError
from dvrt.models.swap_frames import Frames
from dvrt.models.swap_ranges import Range, Ranges

OnLayer = Callable[[int], None]
Packed = npt.NDArray[np.uint8]
SlotRange = tuple[int, int, int]
"""(slot, start, stop)."""


class SwapTrial(NamedTuple):
    """Of this stage, tried at load time: seconds of a decode step at half the context, and bytes a
    second of a swap-in (0: no limit is known).
    """

    step_s: float
    bandwidth: float


class DeviceModel(Protocol):
    """A stage's model as this wrapper uses it, with as many microbatches as there are frames."""

    @property
    def weights_bytes(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    def decode(self, microbatch: int, positions: Sequence[int], inputs: Any) -> Any: ...
    def chunk(
        self, slot: int, start: int, n_tokens: int, inputs: Any, on_layer: OnLayer | None = None
    ) -> Any: ...
    def decode_logits(self, hidden: Any, rows: Sequence[int]) -> Any: ...
    def chunk_logits(self, hidden: Any, n_tokens: int) -> Any: ...
    def release(self) -> None: ...
    def fork(self, source: int, target: int, n_tokens: int) -> None: ...
    def scrub(self, slot: int) -> None: ...
    def pack(self, ranges: Sequence[SlotRange], first: int, last: int) -> Any: ...
    def entry_bytes(self, first: int, last: int) -> int: ...


class Backing(Protocol):
    """Host memory for the logs of all slots, and the copies between it and the device's rows.

    ``row`` is a slot of the device's own arena. A copy has happened when its call returns.
    """

    @property
    def nbytes(self) -> int: ...
    def copy_in(self, row: int, slot: int, start: int, stop: int) -> None: ...
    def copy_out(self, slot: int, row: int, start: int, stop: int) -> None: ...
    def blank(self, row: int, start: int, stop: int) -> None:
        """Zero positions of a device row."""
        ...

    def computed(self, frame: int) -> None:
        """Called when the device was given work on a frame: later copies of it come after that."""
        ...

    def release(self) -> None: ...
    def fork(self, source: int, target: int, n_tokens: int) -> None: ...
    def scrub(self, slot: int) -> None: ...
    def pack(self, ranges: Sequence[SlotRange], first: int, last: int) -> Any: ...
    def unpack(
        self, slot: int, start: int, stop: int, first: int, last: int, buffer: Any
    ) -> None: ...


class SwappingModel:
    """``device`` computes with ``n_frames`` frames, ``backing`` keeps ``n_microbatches``.

    Slots are those of the whole grid, as without swapping, and so are the results, bit by bit.
    """

    def __init__(
        self,
        device: DeviceModel,
        backing: Backing,
        *,
        n_frames: int,
        n_microbatches: int,
        batch_size: int,
        trial: SwapTrial | None = None,
    ) -> None:
        self.trial = trial
        self._device = device
        self._backing = backing
        self._batch_size = batch_size
        self._frames = Frames(n_frames, n_microbatches)
        self._ranges = Ranges(n_microbatches * batch_size)
        self._used = [0] * (n_frames * batch_size)
        self._state = threading.RLock()
        self._copying = [threading.RLock() for _ in range(n_microbatches)]
        self._filling = [threading.Lock() for _ in range(n_frames)]

    def __repr__(self) -> str:
        return f"<SwappingModel {self._frames!r} of {self._device!r}>"

    @property
    def frames(self) -> Frames:
        return self._frames

    @property
    def weights_bytes(self) -> int:
        return self._device.weights_bytes

    @property
    def kv_bytes(self) -> int:
        """Of the device; ``host_kv_bytes`` are the backing's."""
        return self._device.kv_bytes

    @property
    def host_kv_bytes(self) -> int:
        return self._backing.nbytes

    def entry_bytes(self, first: int, last: int) -> int:
        return self._device.entry_bytes(first, last)

    def decode(self, microbatch: int, positions: Sequence[int], inputs: Any) -> Any:
        """See StageModel. What of the rows' logs is not on the device is copied there first."""
        taking = {
            microbatch * self._batch_size + row: position
            for row, position in enumerate(positions)
            if position >= 0
        }
        frame = self._make_resident(microbatch, taking)
        for slot, position in taking.items():
            self._compute(slot, position, position + 1)
        hidden = self._device.decode(frame, positions, inputs)
        self._backing.computed(frame)
        return hidden

    def chunk(
        self, slot: int, start: int, n_tokens: int, inputs: Any, on_layer: OnLayer | None = None
    ) -> Any:
        """See StageModel; ``on_layer`` may already ``pack`` what it is told of."""
        frame = self._make_resident(slot // self._batch_size, {slot: start})
        self._compute(slot, start, start + n_tokens)
        hidden = self._device.chunk(self._row(slot), start, n_tokens, inputs, on_layer)
        self._backing.computed(frame)
        return hidden

    def decode_logits(self, hidden: Any, rows: Sequence[int]) -> Any:
        return self._device.decode_logits(hidden, rows)

    def release(self) -> None:
        """Let go of weights and logs at once; no copy may be under way, and it computes no more."""
        self._device.release()
        self._backing.release()

    def chunk_logits(self, hidden: Any, n_tokens: int) -> Any:
        return self._device.chunk_logits(hidden, n_tokens)

    def fork(self, source: int, target: int, n_tokens: int) -> None:
        """The slot ``target`` gets the first ``n_tokens`` entries of ``source``."""
        self._settle(source)
        with self._lock(target):
            self._backing.fork(source, target, n_tokens)
            is_here = self._fork_here(source, target, n_tokens)
            with self._state:
                cached = n_tokens if is_here else 0
                self._ranges.replaced(target, stored=n_tokens, cached=cached)

    def scrub(self, slot: int) -> None:
        """Zero a slot's entries in the backing and, if it is there, on the device."""
        with self._lock(slot):
            self._backing.scrub(slot)
            row = self._resident_row(slot)
            if row is not None:
                self._device.scrub(row)
                self._used[row] = 0
            with self._state:
                self._ranges.replaced(slot, stored=0, cached=0)

    def pack(self, ranges: Sequence[SlotRange], first: int, last: int) -> Any:
        """See StageModel. What has not gone out yet is taken from the device, where it still is."""
        runs = [(frame, list(run)) for frame, run in groupby(ranges, key=self._only_in)]
        packed = [self._pack(frame, run, first, last) for frame, run in runs]
        return packed[0] if len(packed) == 1 else np.concatenate([_flat(part) for part in packed])

    def _only_in(self, wanted: SlotRange) -> int | None:
        """The frame that alone holds all of a range; None when the backing has it."""
        slot, _, stop = wanted
        if self._ranges.stored(slot) >= stop:
            return None
        return self._frames.frame(slot // self._batch_size)

    def _pack(self, frame: int | None, run: Sequence[SlotRange], first: int, last: int) -> Any:
        if frame is None:
            return self._backing.pack(run, first, last)
        with self._filling[frame]:
            if all(self._only_in(wanted) == frame for wanted in run):
                rows = [(self._row(slot), start, stop) for slot, start, stop in run]
                return self._device.pack(rows, first, last)
        return self.pack(run, first, last)  # it went out meanwhile

    def unpack(self, slot: int, start: int, stop: int, first: int, last: int, buffer: Any) -> None:
        """See StageModel. The entries go to the backing; the device gets them when they are due."""
        self._settle(slot)
        with self._lock(slot):
            self._backing.unpack(slot, start, stop, first, last, buffer)
            with self._state:
                self._ranges.written(slot, start, stop)

    def claim(self, microbatch: int, *, after: int = -1) -> bool:
        """Give the microbatch a frame if it has none; False when none can be given up (``Frames``).

        What the frame's microbatch still owes to the backing is copied there first.
        """
        with self._state:
            if self._frames.frame(microbatch) is not None:
                return True
            frame = self._frames.victim(after=after)
        if frame is None:
            return False
        old = self._frames.held(frame)
        slots = () if old is None else self._slots(old)
        if owed := self.owes(slots):
            self.swap_out(owed)
        with self._state:
            for slot in slots:
                self._ranges.dropped(slot)
            self._frames.give(frame, microbatch)
        return True

    def lacks(self, lengths: Mapping[int, int]) -> tuple[Range, ...]:
        """What must come to the device before the logs of these slots have these lengths there."""
        with self._state:
            found = (self._ranges.lacks(slot, length) for slot, length in lengths.items())
            return tuple(each for each in found if each is not None)

    def owes(self, slots: Iterable[int]) -> tuple[Range, ...]:
        """What of these slots is on the device only."""
        with self._state:
            found = (self._ranges.owes(slot) for slot in slots)
            return tuple(each for each in found if each is not None)

    def lengths(self, slots: Iterable[int]) -> dict[int, int]:
        """How long the logs of these slots are known to be."""
        with self._state:
            known = self._ranges
            return {slot: max(known.stored(slot), known.cached(slot)) for slot in slots}

    def swap_in(self, wanted: Iterable[Range]) -> None:
        """Copy ranges to the device. The frame is claimed, and nobody computes on it."""
        for part in wanted:
            row = self._row(part.slot)
            with self._lock(part.slot), self._filling[row // self._batch_size]:
                self._backing.copy_in(row, part.slot, part.start, part.stop)
                self._clean(row, part.stop)
                with self._state:
                    self._ranges.came_in(part)

    def swap_out(self, owed: Iterable[Range]) -> None:
        """Copy ranges to the backing, but for what is there by now or of an older version."""
        for part in owed:
            with self._lock(part.slot):
                if not self._ranges.is_owed(part):
                    continue
                self._backing.copy_out(part.slot, self._row(part.slot), part.start, part.stop)
                with self._state:
                    self._ranges.went_out(part)

    def _make_resident(self, microbatch: int, lengths: Mapping[int, int]) -> int:
        """The frame of a microbatch, with all of these logs in it. For the compute thread."""
        if self._frames.frame(microbatch) is None:
            if not self.claim(microbatch):
                raise ProtocolError(f"no frame for microbatch {microbatch}: {self._frames!r}")
            self._frames.begin(microbatch)
        self.swap_in(self.lacks(lengths))
        for slot, length in lengths.items():
            if self._ranges.cached(slot) < length:
                raise ProtocolError(
                    f"slot {slot}: {length} entries wanted, {self._ranges.stored(slot)} are stored"
                )
        frame = self._frames.frame(microbatch)
        assert frame is not None
        return frame

    def _compute(self, slot: int, start: int, stop: int) -> None:
        row = self._row(slot)
        if start == 0:
            self._clean(row, 0)
        self._used[row] = max(self._used[row], stop)
        with self._state:
            self._ranges.computed(slot, start, stop)

    def _clean(self, row: int, stop: int) -> None:
        """Nothing of another log may stay behind one's own: what is not finite spreads."""
        if self._used[row] > stop:
            self._backing.blank(row, stop, self._used[row])
        self._used[row] = stop

    def _slots(self, microbatch: int) -> range:
        return range(microbatch * self._batch_size, (microbatch + 1) * self._batch_size)

    def _fork_here(self, source: int, target: int, n_tokens: int) -> bool:
        """Fork on the device too, where both are in the frame of the step; whether they were."""
        row, source_row = self._resident_row(target), self._resident_row(source)
        is_one_frame = source // self._batch_size == target // self._batch_size
        if row is None or source_row is None or not is_one_frame:
            return False
        if self._ranges.cached(source) < n_tokens:
            return False
        self._device.fork(source_row, row, n_tokens)
        self._used[row] = max(self._used[row], n_tokens)
        return True

    def _settle(self, slot: int) -> None:
        self.swap_out(self.owes((slot,)))

    def _resident_row(self, slot: int) -> int | None:
        microbatch, row = divmod(slot, self._batch_size)
        frame = self._frames.frame(microbatch)
        return None if frame is None else frame * self._batch_size + row

    def _row(self, slot: int) -> int:
        row = self._resident_row(slot)
        if row is None:
            raise ProtocolError(f"slot {slot} is not on the device: {self._frames!r}")
        return row

    def _lock(self, slot: int) -> threading.RLock:
        return self._copying[slot // self._batch_size]


def _flat(packed: Any) -> Packed:
    return np.frombuffer(Region.of(packed).view(), np.uint8)
