"""The asks of one node that still wait for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from dvrt.errors import ActorGone, AskTimeout


class Asks:
    """Each ask ends once: by its answer, its deadline, the loss of its peer, or its asker."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._open: dict[int, tuple[str, asyncio.Future[object]]] = {}

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def opened(
        self, node_address: str, what: str, deadline_s: float
    ) -> Iterator[tuple[int, asyncio.Future[object]]]:
        """The number and the future of a new ask, forgotten when the block is left."""
        loop = asyncio.get_running_loop()
        number, future = next(self._numbers), loop.create_future()
        self._open[number] = node_address, future
        text = f"{what} did not answer within {deadline_s:g} s"
        timer = loop.call_later(deadline_s, self.fail, number, AskTimeout(text))
        try:
            yield number, future
        finally:
            timer.cancel()
            del self._open[number]
            if future.done() and not future.cancelled():
                future.exception()  # an asker that left before it looked leaves no complaint

    def answer(self, number: int, answer: object) -> bool:
        """False when nobody waits for it any more."""
        _, future = self._open.get(number, ("", None))
        if future is None or future.done():
            return False
        future.set_result(answer)
        return True

    def fail(self, number: int, error: Exception) -> bool:
        """As ``answer``, with an error."""
        _, future = self._open.get(number, ("", None))
        if future is None or future.done():
            return False
        future.set_exception(error)
        return True

    def lose(self, node_address: str | None, reason: str) -> None:
        """Fail the asks to one node, or all of them."""
        for number, (address, _) in list(self._open.items()):
            if node_address is None or address == node_address:
                self.fail(number, ActorGone(f"{address} is gone: {reason}"))
