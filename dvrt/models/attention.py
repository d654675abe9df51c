"""Attention over the arena's views, registered with transformers under two names.

``dvrt_exact`` gives a row the same bits whatever stands in the other rows and however far beyond
its own positions the (masked) extent reaches. ``dvrt_fast`` only promises the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dvrt.errors import ModelError

EXACT, FAST = "dvrt_exact", "dvrt_fast"
_UPCAST_ELEMENTS = 1 << 20
_NOT_SERVED = ("softcap", "s_aux", "sinks", "position_bias")

Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor
]


def attend_exactly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """``[rows, heads, tokens, dim]``; each (row, head) is computed alone, in the same order always.

    One query of a row in bfloat16 goes through float32: PyTorch's bfloat16 kernels repack all keys
    for it, which was measured 2 to 5 times slower.
    """
    if query.shape[2] > 1 or query.dtype == torch.float32 or query.device.type != "cpu":
        return _sdpa(query, key, value, mask, scaling)
    rows = max(1, _UPCAST_ELEMENTS // key[0].numel())
    parts = [
        _sdpa(
            query[at : at + rows].float(),
            key[at : at + rows].float(),
            value[at : at + rows].float(),
            mask[at : at + rows].float(),
            scaling,
        )
        for at in range(0, query.shape[0], rows)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(query.dtype)


def attend_fast(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """As ``attend_exactly``; the query heads that share a key head are computed as its rows."""
    rows, heads, tokens, dim = query.shape
    kv_heads = key.shape[1]
    if tokens > 1 or heads == kv_heads:
        return attend_exactly(query, key, value, mask, scaling)
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    out = _sdpa(grouped, key, value, mask, scaling)
    return out.reshape(rows, heads, tokens, value.shape[-1])


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    shared = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=shared
    )


def _interface(attend: Attend) -> Callable[..., tuple[torch.Tensor, None]]:
    """The function as transformers calls it: the output is ``[rows, tokens, heads, dim]``."""

    def forward(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        for name in _NOT_SERVED:
            if kwargs.get(name) is not None:
                raise ModelError(f"{type(module).__name__}: attention with {name} is not served")
        out = attend(query, key, value, attention_mask, scaling)
        return out.transpose(1, 2).contiguous(), None

    return forward


AttentionInterface.register(EXACT, _interface(attend_exactly))
AttentionInterface.register(FAST, _interface(attend_fast))
