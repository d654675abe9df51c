"""Coroutines that begin at once, in the caller's turn, and go on in a task only if they must wait.

Saves the switch to another task when a coroutine, such as a channel's ``send``, usually has
nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


class Started:
    """The rest of a coroutine that began in ``begin`` and waits for its first future.

    Must be awaited once, by a task of the same loop. The coroutine must not care which task runs
    it: no ``asyncio.timeout`` and no ``current_task`` before its first wait.
    """

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        coroutine, waits_for = self._coroutine, self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as error:
                    waits_for = coroutine.throw(error)
                else:
                    waits_for = coroutine.send(sent)
        except StopIteration:
            return


def begin(coroutine: Coroutine[Any, Any, None]) -> Started | None:
    """Run a coroutine until it waits; None when it did not have to. Raises what it raises."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return Started(coroutine, waits_for)
