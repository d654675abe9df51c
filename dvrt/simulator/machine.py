"""A machine as the network sees it: one way out, one way in, and whether it is there at all."""

from __future__ import annotations


class Machine:
    """Messages leave one after the other and arrive one after the other.

    ``life`` counts how often it has been lost: what was under way in an earlier life is lost too.
    """

    __slots__ = ("in_free_s", "is_up", "life", "out_free_s", "sent_bytes")

    def __init__(self) -> None:
        self.is_up = True
        self.life = 0
        self.out_free_s = self.in_free_s = 0.0
        self.sent_bytes = 0.0

    def lose(self) -> None:
        self.is_up = False
        self.life += 1

    def replace(self, now: float) -> None:
        self.is_up = True
        self.out_free_s = self.in_free_s = now


def transfer(
    source: Machine,
    target: Machine,
    size_bytes: float,
    bandwidth: float,
    *,
    begin_s: float,
    last_s: float | None = None,
    last_bytes: float = 0.0,
) -> float:
    """When the last byte has come over a link that both machines share with all else they send.

    What is sent is ready from ``begin_s`` on, piece by piece as long as it is being made: its last
    ``last_bytes`` only at ``last_s``. The link is taken for as long as the bytes need.
    """
    start_s = max(begin_s, source.out_free_s, target.in_free_s)
    free_s = start_s + size_bytes / bandwidth
    source.out_free_s = target.in_free_s = free_s
    source.sent_bytes += size_bytes
    return free_s if last_s is None else max(free_s, last_s + last_bytes / bandwidth)
