"""Streaming behind the compute: step i travels while step i + 1 is computed (mode OVERLAPPED)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from dvrt.cuda.fences import Fence
from dvrt.errors import ChannelClosed, Corrupted, PeerLost, TransferTimeout
from dvrt.kv.plan import Tokens, Worker
from dvrt.streaming.contiguous import deadline
from dvrt.streaming.link import Link
from dvrt.streaming.outflow import Outflow
from dvrt.streaming.setups import Setups

Renew = Callable[[Sequence[Worker]], Awaitable[Mapping[Worker, Link]]]
"""Links to the peers that were lost: new ones, or the same where only the stream ended."""

MAX_TRIES = 8
"""How often one step is shipped before what ended it is raised."""


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    tokens: Tokens
    after: Sequence[Fence]
    setups: Setups | None


class Behind:
    """Ships steps in their order in a task of its own, at most ``limit`` of them unproved.

    ``step_s`` is the deadline of each. With ``renew``, a step that was lost, late or corrupted is
    shipped again over the links that it returns; without, and when it raises, streaming ends with
    the error. The outflow stays the caller's to close.
    """

    def __init__(
        self, outflow: Outflow, *, limit: int, step_s: float, renew: Renew | None = None
    ) -> None:
        self.proved = -1
        self._outflow = outflow
        self._step_s = step_s
        self._renew = renew
        self._steps: asyncio.Queue[_Step] = asyncio.Queue(limit)
        self._task = asyncio.create_task(self._ship_all(), name="streaming behind the compute")

    async def push(
        self,
        number: int,
        tokens: Tokens,
        *,
        after: Sequence[Fence] = (),
        setups: Setups | None = None,
    ) -> None:
        """Hand a step over; waits only where ``limit`` steps are on their way already.

        Raises what an earlier step raised: nothing after it was shipped.
        """
        step = _Step(number, tokens, after, setups)
        if not (self._task.done() or self._steps.full()):
            self._steps.put_nowait(step)
            return
        await self._unless_failed(asyncio.ensure_future(self._steps.put(step)))

    async def drain(self, *, deadline_s: float | None) -> None:
        """Return when every step that was pushed is proved. Raises as ``push``."""
        async with deadline(deadline_s, "streaming behind the compute"):
            await self._unless_failed(asyncio.ensure_future(self._steps.join()))

    async def _unless_failed(self, waiting: asyncio.Future[None]) -> None:
        try:
            await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not waiting.done():
                waiting.cancel()
        if self._task.done():
            if not self._task.cancelled() and (error := self._task.exception()):
                raise error
            raise ChannelClosed("streaming behind the compute has ended")

    async def _ship_all(self) -> None:
        while True:
            step = await self._steps.get()
            for tries_left in reversed(range(MAX_TRIES if self._renew else 1)):
                try:
                    await self._mend()
                    await self._ship(step)
                    break
                except (PeerLost, TransferTimeout, Corrupted) as error:
                    if not tries_left:
                        raise
                    await self._outflow.cancel_unproved(step.number, str(error))
            self.proved = step.number
            self._steps.task_done()

    async def _mend(self) -> None:
        if self._renew is not None and (lost := self._outflow.lost):
            await self._outflow.resume(await self._renew(lost), deadline_s=self._step_s)

    async def _ship(self, step: _Step) -> None:
        await self._outflow.ship(
            step.number,
            step.tokens,
            deadline_s=self._step_s,
            after=step.after,
            setups=step.setups,
        )

    async def aclose(self) -> None:
        """Stop; steps that are not proved stay unproved, and the outflow must be cancelled."""
        self._task.cancel()
        await asyncio.wait([self._task])
