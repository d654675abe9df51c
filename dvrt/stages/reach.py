"""Whether those whom a stage sends to are in reach: a network may lose what passes between two
workers while the controller hears both."""

from __future__ import annotations

from collections.abc import Iterable

from dvrt.actors.heartbeat import Heartbeat
from dvrt.actors.node import Node
from dvrt.actors.ref import split_ref

BEATS = 4
"""So many beats of a peer's node are missed before it is out of reach."""


class Reach:
    """Beats to the nodes of others, and breaks the links to one that is silent for ``limit_s``.

    What was sent on them since then is lost, and whoever watches an actor there is told. 0 is no
    limit, and no beats. Belongs to the running loop.
    """

    def __init__(self, node: Node, limit_s: float) -> None:
        self._node, self._limit_s = node, limit_s
        self._beats: dict[str, Heartbeat] = {}

    def keep(self, actors: Iterable[str]) -> None:
        """Listen to the nodes of these actors, and of no others."""
        wanted = {split_ref(actor)[0] for actor in actors} if self._limit_s else set()
        wanted.discard(self._node.address)
        for address in self._beats.keys() - wanted:
            self._beats.pop(address).close()
        for address in sorted(wanted - self._beats.keys()):
            self._beats[address] = self._listen(address)

    def close(self) -> None:
        """Listen to nobody; harmless at any time."""
        self.keep(())

    def _listen(self, address: str) -> Heartbeat:
        def give_up(silence_s: float) -> None:
            self._node.cut(address, f"nothing was heard of it for {silence_s:.2f} s")

        return Heartbeat(
            self._node,
            address,
            interval_s=self._limit_s / BEATS,
            limit_s=self._limit_s,
            on_silence=give_up,
        )
