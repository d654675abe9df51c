"""Swapping at one stage: which microbatches are on the device, and the two lanes of copies."""

from __future__ import annotations

from dvrt.simulator.deployment import LinkFigures


class Frames:
    """``n_frames`` microbatches on the device; the others wait in host memory.

    A microbatch that is not there is copied in whole, into the frame used longest ago, as soon as
    what that frame's last step added is out: while others compute, for the next step is known from
    the order in which the microbatches come round. Only new entries are copied out.
    """

    __slots__ = ("_in_rate", "_left", "_n_frames", "_out_rate", "in_free_s", "out_free_s", "wait_s")

    def __init__(self, n_frames: int, links: LinkFigures) -> None:
        self._n_frames = n_frames
        self._in_rate, self._out_rate = links.host_to_device, links.device_to_host
        self._left: dict[int, float] = {}
        self.in_free_s = self.out_free_s = 0.0
        self.wait_s = 0.0

    def ready(self, microbatch: int, held_bytes: float, start_s: float) -> float:
        """When a step may start that could start at ``start_s`` if its logs were there."""
        if microbatch in self._left:
            self._left[microbatch] = self._left.pop(microbatch)
            return start_s
        begin_s = self.in_free_s
        if len(self._left) >= self._n_frames:
            begin_s = max(begin_s, self._left.pop(next(iter(self._left))))
        self.in_free_s = begin_s + held_bytes / self._in_rate
        self._left[microbatch] = self.in_free_s
        if self.in_free_s <= start_s:
            return start_s
        self.wait_s += self.in_free_s - start_s
        return self.in_free_s

    def computed(self, microbatch: int, new_bytes: float, end_s: float) -> None:
        """A step has added entries, which are copied out behind it."""
        begin_s = max(end_s, self.out_free_s)
        self.out_free_s = begin_s + new_bytes / self._out_rate
        self._left[microbatch] = self.out_free_s

    def clear(self, now: float) -> None:
        """Nothing is on the device any more, and no copy is under way."""
        self._left.clear()
        self.in_free_s = self.out_free_s = now
