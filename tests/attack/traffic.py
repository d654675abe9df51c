"""Requests drawn from a number, and what became of them; the hash model makes every token tell."""

from __future__ import annotations

import random
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import dvrt
from dvrt.cluster.engine import Engine

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """Token ids of each sample as far as they came, and the reasons of those that ended."""

    ids: tuple[Ids, ...]
    why: tuple[str, ...]
    error: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.error and set(self.why) <= {"length", "stop"}

    def fits(self, whole: Outcome) -> bool:
        """Whether every sample is a beginning of the same request's whole answer."""
        return all(
            mine == other[: len(mine)] for mine, other in zip(self.ids, whole.ids, strict=True)
        )


def wish(number: int, *, max_prompt: int = 70, max_tokens: int = 30) -> dict[str, Any]:
    """Prompt and options of request ``number``, the same whenever it is asked for."""
    rng = random.Random(number)
    return {
        "prompt": [rng.randrange(307) for _ in range(rng.randint(1, max_prompt))],
        "max_tokens": rng.randint(1, max_tokens),
        "temperature": rng.choice((0.0, 0.0, 0.7, 1.5)),
        "top_k": rng.choice((0, 5)),
        "repetition_penalty": rng.choice((1.0, 1.0, 1.3)),
        "seed": number,
        "n": rng.choice((1, 1, 1, 2, 5)),
        "stop_ids": [rng.randrange(307) for _ in range(rng.choice((0, 20)))],
        "request_id": f"r{number}",
    }


async def ask(
    engine: Engine, asked: dict[str, Any], *, leave_after: int | None = None, **more: Any
) -> Outcome:
    """Read the answer, or leave once so many tokens have come; refusals and failures are told."""
    options = {**asked, **more}
    ids: list[list[int]] = [[] for _ in range(options.get("n", 1))]
    why = [""] * len(ids)
    error = ""
    try:
        async with aclosing(engine.generate(options.pop("prompt"), **options)) as tokens:
            async for token in tokens:
                if token.id >= 0:
                    assert token.index == len(ids[token.sample])
                    ids[token.sample].append(token.id)
                if token.finish_reason is not None:
                    why[token.sample] = token.finish_reason.value
                if leave_after is not None and sum(map(len, ids)) >= leave_after:
                    break
    except dvrt.DvrtError as failed:
        error = type(failed).__name__
    return Outcome(tuple(map(tuple, ids)), tuple(why), error)
