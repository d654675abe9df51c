"""Which microbatch is in which frame of the device. Knows turns and pins, no entries."""

from __future__ import annotations

from dvrt.errors import ProtocolError


class Frames:
    """``n_frames`` places on the device for ``n_microbatches`` that take turns.

    A pinned frame is computed on or copied, and stays. Of the others the one whose turn is
    farthest away is given up first. Turns come round as they did the last time; a microbatch that
    others have passed over for a whole round is idle, and expected last of all.
    """

    def __init__(self, n_frames: int, n_microbatches: int) -> None:
        self._held: list[int | None] = [None] * n_frames
        self._frames: dict[int, int] = {}
        self._pins = [0] * n_frames
        self._order = list(range(n_microbatches))
        self._passed = [n_microbatches] * n_microbatches

    def __repr__(self) -> str:
        held = zip(self._held, self._pins, strict=True)
        return f"<Frames {' '.join(f'{m}:{pins}' for m, pins in held)}>"

    def frame(self, microbatch: int) -> int | None:
        return self._frames.get(microbatch)

    def pin(self, microbatch: int) -> None:
        self._pins[self._frames[microbatch]] += 1

    def unpin(self, microbatch: int) -> None:
        self._pins[self._frames[microbatch]] -= 1

    def begin(self, microbatch: int) -> None:
        """It is this microbatch's turn."""
        place = self._order.index(microbatch)
        for passed in self._order[:place]:
            self._passed[passed] += 1
        self._passed[microbatch] = 0
        self._order.append(self._order.pop(place))

    def turn(self, microbatch: int) -> int:
        """How many turns of others come before this microbatch's next one."""
        return self._order.index(microbatch) + len(self._order) * self._is_idle(microbatch)

    def upcoming(self) -> list[int]:
        """Those that are expected before the one that had its turn last, the next one first."""
        return [each for each in self._order[:-1] if not self._is_idle(each)]

    def _is_idle(self, microbatch: int) -> bool:
        return self._passed[microbatch] >= len(self._order)

    def victim(self, *, after: int = -1) -> int | None:
        """The frame to be given up next; None when all are pinned or needed too soon.

        A microbatch whose turn is not beyond ``after`` stays.
        """
        best, farthest = None, after
        for frame, microbatch in enumerate(self._held):
            if microbatch is None:
                return frame
            if self._pins[frame]:
                continue
            if self.turn(microbatch) > farthest:
                best, farthest = frame, self.turn(microbatch)
        return best

    def held(self, frame: int) -> int | None:
        return self._held[frame]

    def give(self, frame: int, microbatch: int) -> None:
        """The frame is this microbatch's from now on. Raises ProtocolError if it cannot be."""
        if self._pins[frame] or microbatch in self._frames:
            raise ProtocolError(f"frame {frame} for microbatch {microbatch}: {self!r}")
        old = self._held[frame]
        if old is not None:
            del self._frames[old]
        self._held[frame] = microbatch
        self._frames[microbatch] = frame
