"""What every actor that keeps copies of logs says: what it has stored, and what it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from dvrt.actors.actor import Actor
from dvrt.errors import ActorError, TransportError
from dvrt.protocol.messages import LogRange, ReplicaGap, Replicated


class Holder(Actor):
    """Acknowledges to the actor at ``controller``. Whoever is gone needs to be told nothing.

    Entries of a pipeline in ``dropped`` may still be on their way; nobody wants them.
    """

    def __init__(self, controller: str) -> None:
        self._controller = controller
        self.dropped: set[int] = set()

    async def try_tell(self, address: str, message: object) -> None:
        with suppress(ActorError, TransportError):
            await self.node.ref(address).tell(message)

    async def say_stored(self, pipeline: int, stage: int, step: int, *, n_refused: int = 0) -> None:
        """All of a stage's logs up to a step are here, but for ``n_refused`` ranges."""
        stored = Replicated(
            pipeline=pipeline,
            stage=stage,
            holder=self.me.address,
            step=step,
            refused=n_refused,
        )
        await self.try_tell(self._controller, stored)

    async def say_gap(self, origin: str, ranges: Sequence[LogRange]) -> None:
        """What the stage's actor has to send from the start: it does not join what is here."""
        gap = ReplicaGap(holder=self.me.address, ranges=tuple(ranges))
        await self.try_tell(origin, gap)
