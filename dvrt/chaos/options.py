"""What ``dvrt chaos`` can be told."""

from __future__ import annotations

from dataclasses import dataclass

from dvrt.chaos.schedule import KINDS, check_kinds
from dvrt.options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What happens, for how long, and how often."""

    seed: int = option(0, help="the same seed draws the same faults")
    kinds: str | None = option(
        None,
        help=f"faults, such as kill,slow; of {','.join(KINDS)}",
        otherwise="all that there are",
    )
    duration: float = option(10.0, help="how long faults happen", unit="seconds", low=0.0)
    virtual: bool = option(False, help="whole clusters in one process, in virtual time")
    seeds: int = option(100, help="with virtual: so many schedules, from seed on", low=1)
    jobs: int | None = option(None, help="with virtual: processes", otherwise="cores", low=1)
    replay: str | None = option(None, help="run the schedule in this file, in virtual time")

    def check(self) -> None:
        """Raise ConfigError for a kind that is unknown."""
        self.kinds_of(KINDS)

    def kinds_of(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Raises ConfigError for one that is unknown, or cannot be done here."""
        given = tuple(filter(None, self.kinds.split(","))) if self.kinds is not None else known
        check_kinds(given, known)
        return given
