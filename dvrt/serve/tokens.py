"""Several requests' tokens as one stream, and their sum as usage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from dvrt.results import Token

Generator = AsyncGenerator[Token, None]


async def merged(streams: Sequence[Generator]) -> AsyncGenerator[tuple[int, Token], None]:
    """Tokens of all streams as they come, each with its stream's number.

    The first error of any ends the whole. Whatever ends it, closing and cancellation included, all
    streams are closed before it returns.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for token in stream:
                yield 0, token
        return
    queue: asyncio.Queue[tuple[int, Token] | asyncio.Task[None]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(i, stream, queue)) for i, stream in enumerate(streams)]
    for pump in pumps:
        pump.add_done_callback(queue.put_nowait)
    n_open = len(pumps)
    try:
        while n_open:
            item = await queue.get()
            if isinstance(item, asyncio.Task):
                item.result()
                n_open -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    number: int, stream: Generator, queue: asyncio.Queue[tuple[int, Token] | asyncio.Task[None]]
) -> None:
    async with aclosing(stream):
        async for token in stream:
            queue.put_nowait((number, token))


class Usage:
    """Counts what a call used; a sample that ends without a token of its own has id -1 there."""

    def __init__(self, *, n_prompt: int) -> None:
        self._n_prompt = n_prompt
        self._n_generated = 0

    def count(self, token: Token) -> None:
        self._n_generated += token.id >= 0

    def as_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._n_prompt,
            "completion_tokens": self._n_generated,
            "total_tokens": self._n_prompt + self._n_generated,
        }
