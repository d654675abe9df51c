"""Requests drawn from their numbers, the clients that ask for them, and what they were told."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from dvrt.chaos.schedule import Ask
from dvrt.cluster.engine import Engine
from dvrt.errors import DvrtError

MAX_PROMPT, MAX_TOKENS = 70, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Of each sample the token ids and the text that came, and why it ended if it did."""

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    ends: tuple[str, ...]
    error: str = ""


def wish(number: int, *, vocab_size: int, speaks: bool) -> dict[str, Any]:
    """Prompt and options of a request, the same whenever it is asked for.

    Greedy or seeded, one sample or several; with stop ids, and stop strings where the model
    ``speaks``.
    """
    rng = random.Random(f"request {number}")
    n_stops = rng.choice((0, 0, vocab_size // 40))
    wished: dict[str, Any] = {
        "prompt": [rng.randrange(vocab_size) for _ in range(rng.randint(1, MAX_PROMPT))],
        "max_tokens": rng.randint(1, MAX_TOKENS),
        "temperature": rng.choice((0.0, 0.0, 0.7, 1.5)),
        "top_k": rng.choice((0, 5)),
        "repetition_penalty": rng.choice((1.0, 1.0, 1.3)),
        "seed": number,
        "n": rng.choice((1, 1, 1, 2, 4)),
        "stop_ids": [rng.randrange(vocab_size) for _ in range(n_stops)],
    }
    if speaks and rng.random() < 0.3:
        wished["stop"] = [chr(rng.randrange(97, 123)) for _ in range(3)]
    return wished


async def ask(engine: Engine, asked: Ask, *, name: str) -> Answer:
    """Ask at the asked moment; the answer as far as this client has listened to it."""
    speaks = engine.model.has_tokenizer
    wished = wish(asked.number, vocab_size=engine.model.vocab_size, speaks=speaks)
    wished |= {"deadline_s": asked.deadline_s, "request_id": name}
    listener = _Listener(wished["n"])
    await asyncio.sleep(asked.at_s)
    try:
        async with asyncio.timeout(asked.hang_up_s):
            await listener.listen(engine, wished, asked.leave_after)
    except TimeoutError:
        pass
    except DvrtError as error:
        return listener.answer(f"{type(error).__name__}: {error}")
    return listener.answer()


class _Listener:
    """Collects one request's samples."""

    def __init__(self, n: int) -> None:
        self._ids: list[list[int]] = [[] for _ in range(n)]
        self._texts = [""] * n
        self._ends = [""] * n
        self._fault = ""

    async def listen(self, engine: Engine, wished: dict[str, Any], leave_after: int | None) -> None:
        options = dict(wished)
        async with aclosing(engine.generate(options.pop("prompt"), **options)) as tokens:
            async for token in tokens:
                ids = self._ids[token.sample]
                if token.id >= 0 and token.index != len(ids):
                    self._fault = f"token {token.index} came when {len(ids)} was due"
                if token.id >= 0:
                    ids.append(token.id)
                self._texts[token.sample] += token.text
                if token.finish_reason is not None:
                    self._ends[token.sample] = token.finish_reason.value
                if leave_after is not None and sum(map(len, self._ids)) >= leave_after:
                    return

    def answer(self, error: str = "") -> Answer:
        return Answer(
            ids=tuple(map(tuple, self._ids)),
            texts=tuple(self._texts),
            ends=tuple(self._ends),
            error=error or self._fault,
        )
