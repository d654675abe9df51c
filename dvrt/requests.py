"""What a client asks for and what it gets: the values that every level speaks.

Prompts are token ids here; text lives above, in ``dvrt.serve`` and ``dvrt.models.text``.
"""

from __future__ import annotations

import math
from enum import Enum

from dvrt.errors import RequestRejected
from dvrt.wire import message

TINY = 1e-5
"""Logits divided by less than this are beyond what the sampler's numbers can hold."""


class FinishReason(Enum):
    """Why a sample ended. The first three are the OpenAI API's stop, stop and length."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@message("sampling")
class SamplingParams:
    """How the next token is drawn from the logits.

    ``temperature`` is 0, greedy, or at least 1e-5. ``top_k`` 0 and ``top_p`` 1 keep all tokens.
    ``repetition_penalty`` divides positive and multiplies negative logits of every token already in
    the context, as transformers does. ``logprobs`` asks for the log probability of the drawn token
    and that many alternatives; None for neither.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, low=0.0, high=100.0)
        _check_number("top_p", self.top_p, low=0.0, high=1.0, exclusive=True)
        _check_number(
            "repetition_penalty", self.repetition_penalty, low=0.0, high=1000.0, exclusive=True
        )
        for name in ("temperature", "repetition_penalty"):
            if 0 < getattr(self, name) < TINY:
                text = f"{name} is {getattr(self, name)}; above 0 it must be at least {TINY:g}"
                raise RequestRejected(text, param=name)
        _check_integer("top_k", self.top_k, low=0, high=(1 << 31) - 1)
        _check_integer("seed", self.seed, low=0, high=(1 << 64) - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, low=0, high=20)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


@message("request")
class Request:
    """One prompt, ``n`` samples of it.

    ``stop_ids`` end a sample with STOP, ``eos_ids`` with EOS; the stopping token is part of
    ``token_ids`` but never of the text. ``deadline_s`` counts from submission; None: no deadline.
    """

    id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    n: int = 1
    eos_ids: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestRejected("the prompt is empty; give at least one token", param="prompt")
        _check_integer("max_tokens", self.max_tokens, low=1)
        _check_integer("n", self.n, low=1, high=128)
        for stop in self.stop_ids:
            _check_integer("stop_ids", stop)
        if self.deadline_s is not None:
            _check_number("deadline_s", self.deadline_s, low=0.0, exclusive=True)


@message("sampled")
class SampledToken:
    """One drawn token; ``alternatives`` are (token id, log probability), most probable first."""

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


def _check_number(
    name: str, value: float, *, low: float, high: float = math.inf, exclusive: bool = False
) -> None:
    """Refuse NaN, infinities and values outside [low, high]; ``exclusive`` shuts out ``low``."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestRejected(f"{name} is {value!r}; it must be a number", param=name)
    below = value <= low if exclusive else value < low
    if below or value > high or not _is_finite(value):
        edge = f"above {low:g}" if exclusive else f"at least {low:g}"
        limit = "" if high == math.inf else f" and at most {high:g}"
        raise RequestRejected(f"{name} is {value}; it must be {edge}{limit}", param=name)


def _is_finite(value: float) -> bool:
    """Whether it is one for a float, too; integers have no end."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_integer(
    name: str, value: int, *, low: float = -math.inf, high: float = math.inf
) -> None:
    """Refuse all but plain integers in [low, high]: nothing else travels as one."""
    if type(value) is not int:
        raise RequestRejected(f"{name} is {value!r}; it must be a whole number", param=name)
    if not low <= value <= high:
        limit = "" if high == math.inf else f" and at most {high}"
        raise RequestRejected(f"{name} is {value}; it must be at least {low}{limit}", param=name)
