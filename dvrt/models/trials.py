"""What a cut model has to show before it is trusted: no family is served wrongly in silence.

Without layers a stage changes nothing; its layers put one entry a position into the cache; and with
dvrt's masks, positions, attention and arena a layer computes what transformers computes alone.
"""

from __future__ import annotations

import torch

from dvrt.errors import ModelError
from dvrt.models.arena import Arena, Geometry
from dvrt.models.cache import ArenaCache, ProbeCache
from dvrt.models.forward import Forward
from dvrt.models.spec import EXTENT_TOKENS

_TRIAL_TOKENS = 6
_CHUNK_TOKENS = 4
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def examine(forward: Forward) -> Geometry:
    """Run all trials; the shape of a layer's entries. Raises ModelError for a model that fails."""
    try:
        if not forward.spec.is_first:
            _require_neutral(forward)
        geometry = _probe(forward)
        _require_same_as_plain(forward, geometry)
        if forward.spec.is_last:
            forward.plain_head = _head_is_plain(forward)
    except (RuntimeError, AttributeError, TypeError, LookupError, ValueError) as error:
        raise _refusal(forward, f"cannot be run in stages: {error}") from error
    return geometry


def _refusal(forward: Forward, why: str) -> ModelError:
    first, stop = forward.spec.layers
    name = type(forward.model).__name__
    return ModelError(f"{forward.spec.directory}: {name}, layers [{first}, {stop}): {why}")


def _noise(forward: Forward, n_tokens: int, width: int) -> torch.Tensor:
    noise = torch.randn(1, n_tokens, width, generator=torch.Generator().manual_seed(0))
    return noise.to(device=forward.device, dtype=forward.dtype)


def _inputs(forward: Forward, n_tokens: int) -> torch.Tensor:
    if not forward.spec.is_first:
        return _noise(forward, n_tokens, forward.hidden_size)
    return forward.embed(torch.arange(n_tokens, device=forward.device)[None])


def _mask(forward: Forward, start: int, n_tokens: int) -> torch.Tensor:
    mask = torch.full(
        (1, 1, n_tokens, EXTENT_TOKENS), float("-inf"), dtype=forward.dtype, device=forward.device
    )
    return mask.triu(start + 1)


def _positions(forward: Forward, start: int, n_tokens: int) -> torch.Tensor:
    return torch.arange(start, start + n_tokens, device=forward.device)[None]


def _require_neutral(forward: Forward) -> None:
    """Only for a stage that is not the first: that one embeds."""
    hidden = _inputs(forward, 1)
    with forward.without_layers():
        mask, positions = _mask(forward, 0, 1), _positions(forward, 0, 1)
        out = forward.layers(hidden, mask, positions, ProbeCache())
    if not torch.equal(out, hidden):
        raise _refusal(forward, "it changes hidden states outside of its layers; it cannot be cut")


def _probe(forward: Forward) -> Geometry:
    """Run one position through the layers and see what they put into a cache."""
    cache = ProbeCache()
    mask, positions = _mask(forward, 0, 1), _positions(forward, 0, 1)
    forward.layers(_inputs(forward, 1), mask, positions, cache)
    shapes = set(cache.seen.values())
    if set(cache.seen) != set(range(*forward.spec.layers)) or len(shapes) != 1:
        raise _refusal(forward, f"its layers do not keep one log each, all alike: {cache.seen}")
    return shapes.pop()


def _require_same_as_plain(forward: Forward, geometry: Geometry) -> None:
    """The stage's first layer: a chunk and then single positions, against one plain pass."""
    arena = Arena(
        n_layers=1,
        n_slots=1,
        max_context=EXTENT_TOKENS,
        chunk_tokens=EXTENT_TOKENS,
        geometry=geometry,
        dtype=forward.dtype,
        device=forward.device,
    )
    cache = ArenaCache(arena, forward.spec.first)
    hidden = _inputs(forward, _TRIAL_TOKENS)
    parts, start = [], 0
    with forward.first_layer_only():
        for n_tokens in (_CHUNK_TOKENS, *[1] * (_TRIAL_TOKENS - _CHUNK_TOKENS)):
            cache.aim_at_slot(0, start, n_tokens, EXTENT_TOKENS)
            mask, positions = _mask(forward, start, n_tokens), _positions(forward, start, n_tokens)
            part = hidden[:, start : start + n_tokens]
            parts.append(forward.layers(part, mask, positions, cache))
            start += n_tokens
        plain = forward.plain_layers(hidden).float()
    ours = torch.cat(parts, dim=1).float()
    limit = _TOLERANCE[forward.dtype] * max(1.0, float(plain.abs().max()))
    if not torch.isfinite(plain).all():
        raise _refusal(
            forward, "its first layer computes non-finite values; the weights are damaged"
        )
    if not torch.allclose(ours, plain, rtol=0.0, atol=limit):
        worst = float((ours - plain).abs().max())
        raise _refusal(
            forward, f"its attention is not served: a layer is off by {worst:.3g} with a KV log"
        )


def _head_is_plain(forward: Forward) -> bool:
    """Are the logits what the head alone gives? Some families scale or cap them afterwards."""
    hidden = _noise(forward, 1, forward.head.weight.shape[1])
    return torch.equal(forward.head(hidden), forward.whole_head(hidden))
