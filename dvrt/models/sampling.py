"""Drawing a token from logits: a pure function, so a seed gives one text whatever runs beside it.

The token is argmax(p / E), an exponential race: E is drawn for every token of the vocabulary from a
generator that begins anew at each position, seeded with (seed, sample, position).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dvrt.errors import DvrtError
from dvrt.requests import SampledToken, SamplingParams

_LEAST = 2.0**-54
"""Stands for an exponential that rounds to 0; half of the least other one."""

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

_FIRST_GUESS = 512
"""How many of the likeliest tokens nucleus sampling sorts before it tries more."""


class BadLogits(DvrtError):
    """The model computed infinities or NaN; no token can be drawn."""


def draw(
    logits: Any,
    params: SamplingParams,
    sample: int,
    position: int,
    context_ids: Sequence[int],
) -> SampledToken:
    """Draw the token at ``position`` of sample number ``sample`` from float32 ``[vocabulary]``.

    Greedy is the largest logit, the lowest id on ties. Otherwise temperature, top-k and top-p are
    applied in this order, as transformers does, after the repetition penalty for the tokens of
    ``context_ids`` (the prompt and all tokens drawn so far; only looked at with a penalty).
    Log probabilities are those of the logits as they came. Raises BadLogits for non-finite logits.
    """
    raw: Floats = np.asarray(logits, dtype=np.float32)
    if not np.isfinite(raw).all():
        raise BadLogits(
            f"{np.count_nonzero(~np.isfinite(raw))} of the {len(raw)} logits at position "
            f"{position} are not finite: the model overflowed, or its weights are damaged"
        )
    scores = _penalised(raw, params.repetition_penalty, context_ids)
    if params.is_greedy:
        return _with_logprobs(int(scores.argmax()), raw, params.logprobs)
    kept, values = _keep(_tempered(scores, params.temperature), params)
    exponentials = draw_exponentials(params.seed, sample, position, len(raw))
    if kept is not None:
        exponentials = exponentials[kept]
    chosen = int(np.divide(_weights(values), exponentials, out=exponentials).argmax())
    return _with_logprobs(chosen if kept is None else int(kept[chosen]), raw, params.logprobs)


def draw_exponentials(
    seed: int, sample: int, position: int, n_tokens: int
) -> npt.NDArray[np.float64]:
    """Independent standard exponentials for every token, a function of the arguments alone."""
    source = np.random.SFC64(np.random.SeedSequence((seed, sample, position)))
    values = np.random.Generator(source).random(n_tokens)
    np.subtract(1.0, values, out=values)  # in place: fresh pages cost more than the arithmetic
    np.log(values, out=values)
    np.negative(values, out=values)
    return np.maximum(values, _LEAST, out=values)


def _tempered(scores: Floats, temperature: float) -> Floats:
    """The scores as their distance to the best, which cannot become infinite, by temperature."""
    with np.errstate(over="ignore"):
        tempered: Floats = scores - scores.max()
        tempered /= np.float32(temperature)
    return tempered


def _weights(scores: Floats) -> Floats:
    """The probabilities times a constant."""
    with np.errstate(over="ignore"):
        weights: Floats = scores - scores.max()
    np.exp(weights, out=weights)
    return weights


def _penalised(raw: Floats, penalty: float, context_ids: Sequence[int]) -> Floats:
    if penalty == 1.0 or not len(context_ids):
        return raw
    ids = np.unique(np.asarray(context_ids, dtype=np.intp))
    seen, factor = raw[ids], np.float32(penalty)
    scores = raw.copy()
    scores[ids] = np.where(seen < 0, seen * factor, seen / factor)
    return scores


def _keep(scores: Floats, params: SamplingParams) -> tuple[Ids | None, Floats]:
    """The ids that stay in the race and their scores; None for all of them."""
    kept: Ids | None = None
    if 0 < params.top_k < len(scores):
        place = len(scores) - params.top_k
        kept = np.flatnonzero(scores >= np.partition(scores, place)[place])
        scores = scores[kept]
    if params.top_p < 1.0:
        nucleus = _nucleus(scores, params.top_p)
        kept = nucleus if kept is None else kept[nucleus]
        scores = scores[nucleus]
    return kept, scores


def _nucleus(scores: Floats, top_p: float) -> Ids:
    """The likeliest tokens until their mass reaches ``top_p``; at least one."""
    weights = _weights(scores)
    bound, n_sorted = top_p * float(weights.sum(dtype=np.float64)), _FIRST_GUESS
    while True:
        order = _largest(scores, n_sorted)
        before = np.cumsum(weights[order], dtype=np.float64)
        if before[-1] >= bound or n_sorted >= len(scores):
            return order[: 1 + int(np.searchsorted(before, bound, side="left"))]
        n_sorted *= 8


def _largest(values: Floats, n: int) -> Ids:
    """The indices of the ``n`` largest values, descending, the lower index first on ties."""
    if n >= len(values):
        return np.argsort(-values, kind="stable")
    least = np.partition(values, len(values) - n)[len(values) - n]
    candidates = np.flatnonzero(values >= least)
    return candidates[np.argsort(-values[candidates], kind="stable")][:n]


def _with_logprobs(token: int, raw: Floats, wanted: int | None) -> SampledToken:
    if wanted is None:
        return SampledToken(id=token)
    highest = float(raw.max())
    total = highest + math.log(float(_weights(raw).sum(dtype=np.float64)))
    best = _largest(raw, wanted) if wanted else ()
    alternatives = tuple((int(i), float(raw[i]) - total) for i in best)
    return SampledToken(id=token, logprob=float(raw[token]) - total, alternatives=alternatives)
