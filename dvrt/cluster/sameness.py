"""Whether a request that is named again asks for what it asked for the first time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dvrt.cluster.journal_store import Asked
from dvrt.errors import RequestRejected
from dvrt.requests import Request

_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "logprobs")


def ensure_same(
    asked: Asked, again: Request, *, stop: tuple[str, ...], is_seeded: bool = True
) -> None:
    """Raise RequestRejected (code ``idempotency_mismatch``) naming what differs.

    All that has a part in the answer counts. A deadline has none in what it says, and the seed of
    one that ``is_seeded`` by nobody is another one each time.
    """
    if again.prompt_ids != asked.request.prompt_ids:
        text = f"request {again.id!r} was made with another prompt"
        raise RequestRejected(text, param="prompt", code="idempotency_mismatch")
    for name, former, now in _values(asked, again, stop):
        if former != now and (name != "seed" or is_seeded):
            raise RequestRejected(
                f"request {again.id!r} was made with another {name}: {former!r}, now {now!r}",
                param=name,
                code="idempotency_mismatch",
            )


def _values(asked: Asked, again: Request, stop: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """(name, then, now); stops are a set, and which ids end the text is the model's business."""
    request = asked.request
    yield "n", request.n, again.n
    yield "max_tokens", request.max_tokens, again.max_tokens
    for name in (*_SAMPLING, "seed"):
        yield name, getattr(request.sampling, name), getattr(again.sampling, name)
    yield "stop", sorted(set(asked.stop)), sorted(set(stop))
    yield "stop_ids", sorted(set(request.stop_ids)), sorted(set(again.stop_ids))
    yield "ignore_eos", not request.eos_ids, not again.eos_ids
