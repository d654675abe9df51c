"""The null device: takes the time that a profile says, on any loop, virtual time included.

Its memory is host memory and its copies are real, so that what is lost or altered shows; they are
meant to be small. Only the time is imitated: nominal sizes may be much larger than the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from dvrt.cuda.cpu_device import CpuDevice
from dvrt.cuda.lanes import Lane, LoopLane, ThreadLane


@dataclass(frozen=True, slots=True, kw_only=True)
class NullProfile:
    """What copies cost; compute costs what each call of ``run`` says.

    ``bytes_scale`` is how many nominal bytes each real byte stands for. A rate of 0 is free.
    """

    link_bytes_per_s: float = 0.0
    device_bytes_per_s: float = 0.0
    latency_s: float = 0.0
    bytes_scale: float = 1.0


class NullDevice(CpuDevice):
    """``is_virtual``: time passes by the running loop's timers, as in a loop with virtual time.

    Otherwise it passes on threads that sleep, which is more precise than a real loop's timers.
    """

    def __init__(
        self,
        profile: NullProfile | None = None,
        *,
        name: str = "null",
        is_virtual: bool = True,
        memory_bytes: int | None = None,
    ) -> None:
        self._profile = profile or NullProfile()
        self._is_virtual = is_virtual
        super().__init__(name=name, memory_bytes=memory_bytes)

    def _open_lane(self, name: str) -> Lane:
        return LoopLane(name) if self._is_virtual else ThreadLane(name)

    def _compute_s(self, cost_s: float) -> float:
        return cost_s

    def _copy_s(self, nbytes: int, *, over_link: bool) -> float:
        profile = self._profile
        rate = profile.link_bytes_per_s if over_link else profile.device_bytes_per_s
        nominal = nbytes * profile.bytes_scale
        return profile.latency_s + (nominal / rate if rate else 0.0)
