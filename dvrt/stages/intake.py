"""Logs that come to a stage from elsewhere: entries are written, commits checked, both told of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dvrt.protocol.messages import Arrived, Commit, Entries, LoadStage
from dvrt.stages.compute import Done, Submits
from dvrt.stages.ledger import Ledger, News


class Intake:
    """Has a stage's compute, which alone knows who uses a slot, take what comes.

    ``tell`` gets logs that are complete, and logs that were refused; ``on_failure`` any error,
    after which the stage cannot go on.
    """

    def __init__(
        self,
        order: LoadStage,
        compute: Submits,
        ledger: Ledger,
        *,
        tell: Callable[[Arrived], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._order, self._compute, self._ledger = order, compute, ledger
        self._tell, self._on_failure = tell, on_failure

    def entries(self, note: Entries, data: bytes | bytearray) -> None:
        self._submit(lambda: self._ledger.take(note, data))

    def commit(self, note: Commit) -> None:
        self._submit(lambda: self._ledger.commit(note))

    def _submit(self, work: Callable[[], News | None]) -> None:
        self._compute.submit(work).add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Done[News | None]]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._on_failure(error)
            return
        news = future.result().value
        if news is None:
            return
        self._tell(
            Arrived(
                pipeline=self._order.pipeline,
                stage=self._order.stage,
                slot=news.slot,
                seq=news.seq,
                epoch=news.epoch,
                length=news.length,
                reason=news.reason,
            )
        )
