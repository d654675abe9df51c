"""What can go wrong on a channel, as values: scripted faults and faults drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class FaultKind(Enum):
    DROP = "drop"
    """The message vanishes; its sender is told that all is well."""
    DELAY = "delay"
    """The message, and all behind it, comes ``seconds`` later."""
    CUT = "cut"
    """The connection ends: for a receiver when ``byte`` bytes of the message are there; for a
    sender before any of it leaves, whatever ``byte`` is, since channels send a message whole."""
    FLIP = "flip"
    """Bit ``bit`` of byte ``byte`` of header and regions arrives inverted (modulo their size)."""
    STALL = "stall"
    """Nothing moves for ``seconds``, by default for ever; the connection looks alive."""
    HALF_OPEN = "half-open"
    """From here on this side's sends vanish and nothing is received; nobody is told."""


class Direction(Enum):
    SEND = "send"
    RECEIVE = "receive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, at message number ``message`` of one direction of a wrapped channel.

    Channels are numbered from 0 as they are wrapped; ``channel=None`` means every one.
    """

    kind: FaultKind
    message: int = 0
    direction: Direction = Direction.SEND
    channel: int | None = None
    seconds: float = float("inf")
    byte: int = 0
    bit: int = 0


class FaultPlan(Protocol):
    """Says which fault, if any, meets a message."""

    def fault(self, channel: int, direction: Direction, message: int) -> Fault | None: ...


class ScriptedFaults:
    """The faults of a list; of several that fit one message, the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = tuple(faults)

    def fault(self, channel: int, direction: Direction, message: int) -> Fault | None:
        for fault in self._faults:
            if fault.channel not in (None, channel):
                continue
            if (fault.direction, fault.message) == (direction, message):
                return fault
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomFaults:
    """Faults drawn for each message on its own, so that timing cannot change them.

    ``rates`` are probabilities per message, ``longest_s`` bounds delays and stalls, ``byte`` is
    drawn below ``bytes_below``.
    """

    seed: int
    rates: Mapping[FaultKind, float]
    longest_s: float = 0.1
    bytes_below: int = 1 << 20
    directions: tuple[Direction, ...] = field(default=(Direction.SEND,))

    def __post_init__(self) -> None:
        total = sum(self.rates.values())
        if min(self.rates.values(), default=0.0) < 0 or total > 1:
            raise ValueError(f"rates are probabilities whose sum is at most 1, not {self.rates}")

    def fault(self, channel: int, direction: Direction, message: int) -> Fault | None:
        if direction not in self.directions:
            return None
        draw = random.Random(f"{self.seed}/{channel}/{direction.value}/{message}")
        point = draw.random()
        for kind, rate in self.rates.items():
            point -= rate
            if point < 0:
                return Fault(
                    kind=kind,
                    message=message,
                    direction=direction,
                    channel=channel,
                    seconds=draw.uniform(0, self.longest_s),
                    byte=draw.randrange(self.bytes_below),
                    bit=draw.randrange(8),
                )
        return None
