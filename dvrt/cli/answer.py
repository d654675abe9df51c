"""One prompt, one answer: what ``launch --prompt`` asks and how it is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dvrt.errors import ConfigError, RequestRejected
from dvrt.options import option
from dvrt.requests import SamplingParams
from dvrt.results import Completion

if TYPE_CHECKING:
    from dvrt.cluster.engine import Engine

_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
_GIVEN = ("max_tokens", *_SAMPLING)


def _about_prompt(value: str) -> str | None:
    return None if value else "it is empty; give at least one token"


def _about_ids(value: tuple[int, ...]) -> str | None:
    return None if min(value) >= 0 else "token ids count from 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """A prompt, as text or as token ids, and how to go on from it; None leaves it to the model."""

    prompt: str | None = option(None, help="answer this text once and exit", check=_about_prompt)
    prompt_ids: tuple[int, ...] | None = option(
        None, help="the same with token ids, as in 1,2,3", check=_about_ids
    )
    max_tokens: int | None = option(None, help="longest answer", unit="tokens", low=1)
    temperature: float | None = option(None, help="0 is greedy", low=0.0, high=100.0)
    top_k: int | None = option(None, help="draw from the k best tokens; 0 for all", low=0)
    top_p: float | None = option(
        None, help="draw from this share of the probability", low=0, high=1
    )
    repetition_penalty: float | None = option(None, help="above 1 against repetition", low=0.0)
    seed: int | None = option(None, help="the same seed draws the same tokens", low=0)
    ignore_eos: bool = option(False, help="go on after the model's own end")

    def check(self) -> None:
        """Raise ConfigError for a prompt given twice, for options of a prompt without one, and for
        values that no request may have."""
        if self.prompt is not None and self.prompt_ids is not None:
            raise ConfigError("prompt and prompt_ids are both given; give one")
        given = [name for name in _GIVEN if getattr(self, name) is not None]
        given += ["ignore_eos"] if self.ignore_eos else []
        if self.source is None and given:
            raise ConfigError(f"{given[0]} is given without a prompt; add --prompt or --prompt-ids")
        chosen = {name: getattr(self, name) for name in _SAMPLING if name in given}
        try:
            SamplingParams(**chosen)
        except RequestRejected as error:
            raise ConfigError(str(error)) from error

    @property
    def source(self) -> str | Sequence[int] | None:
        """The prompt, or None when the command is to serve."""
        return self.prompt if self.prompt is not None else self.prompt_ids

    def for_engine(self, stop: Sequence[str]) -> dict[str, Any]:
        """The keyword options of ``Engine.generate``."""
        given = {name: getattr(self, name) for name in _GIVEN}
        return {**given, "ignore_eos": self.ignore_eos, "stop": tuple(stop)}


async def answer_as_json(
    engine: Engine, prompt: str | Sequence[int], options: dict[str, Any]
) -> None:
    """Print the finished answer as one JSON object."""
    completion = await engine.complete(prompt, **options)
    print(json.dumps(as_json(completion)), flush=True)


async def answer_as_text(
    engine: Engine, prompt: str | Sequence[int], options: dict[str, Any]
) -> None:
    """Print the answer as it comes: its text, or its token ids where there is no tokenizer."""
    has_begun = False
    pieces = engine.generate(prompt, **options)
    try:
        async for token in pieces:
            print(token.text if engine.text else f"{token.id} ", end="", flush=True)
            has_begun = True
    finally:
        await pieces.aclose()
        if has_begun:
            print(flush=True)


def as_json(completion: Completion) -> dict[str, Any]:
    """``text``, ``token_ids``, ``finish_reason`` and ``timings`` (seconds)."""
    timings = completion.timings
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason.value,
        "timings": {
            "queued_s": timings.queued_s,
            "first_token_s": timings.first_token_s,
            "per_token_s": timings.per_token_s(len(completion.token_ids)),
            "total_s": timings.total_s,
        },
    }
