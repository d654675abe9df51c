"""One forward pass through a cut model: embeddings, the stage's layers, the head.

Knows how transformers' base models are called; knows neither slots nor batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from dvrt.models.loader import LoadedStage
from dvrt.models.modules import PassThrough
from dvrt.models.spec import StageSpec


class Forward:
    """The computation of one stage. All tensors are on the stage's device, in its dtype."""

    def __init__(self, stage: LoadedStage, spec: StageSpec, *, extent: int) -> None:
        """``extent`` is the largest number of keys that a layer will be asked to attend to."""
        self.model = stage.model
        self.spec = spec
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self.device = torch.device(spec.device)
        self.hidden_size: int = stage.model.config.hidden_size
        self.plain_head = True
        self._inner = stage.inner
        self._cut = stage.cut
        self._embed = stage.model.get_input_embeddings() if spec.is_first else None
        self.head = stage.model.get_output_embeddings()
        self._alibi: torch.Tensor | None = None
        if stage.cut.alibi:
            ones = torch.ones(1, extent, device=self.device)
            heads = stage.model.config.num_attention_heads
            self._alibi = build_alibi_tensor(ones, heads, self.dtype)

    def release(self) -> None:
        """Let go of the weights: modules are in cycles, which may be collected late or never."""
        for module in self.model.modules():
            module._parameters.clear()
            module._buffers.clear()

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """``[rows, tokens, width]``: what the first stage takes in the place of hidden states."""
        assert self._embed is not None
        return self._embed(token_ids)  # type: ignore[no-any-return]

    def layers(
        self, hidden: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Hidden states behind the stage's layers (and behind the norm, at the last stage).

        ``mask`` is additive, ``[rows, 1, tokens, extent]``.
        """
        if self._alibi is not None:
            return self._alibi_layers(hidden, mask, cache)
        out = self._inner(
            inputs_embeds=hidden,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def _alibi_layers(self, hidden: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
        """BLOOM's forward, with biases over the full extent instead of those of a 2-D mask."""
        assert self._alibi is not None
        inner: Any = self._inner
        rows, extent = mask.shape[0], mask.shape[3]
        alibi = self._alibi[:, :, :extent].repeat(rows, 1, 1)
        hidden = inner.word_embeddings_layernorm(hidden)
        for block in inner.h:
            hidden = block(
                hidden, alibi=alibi, attention_mask=mask, layer_past=cache, use_cache=True
            )[0]
        return inner.ln_f(hidden)  # type: ignore[no-any-return]

    def plain_layers(self, hidden: torch.Tensor) -> torch.Tensor:
        """What transformers alone makes of hidden states at the positions from 0 on: no cache."""
        config: Any = self.model.config
        ours, config._attn_implementation = config._attn_implementation, "eager"
        try:
            out = self._inner(inputs_embeds=hidden, use_cache=False)
        finally:
            config._attn_implementation = ours
        return out.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 ``[rows, tokens, vocabulary]``; only at the last stage."""
        if self.plain_head:
            return self.head(hidden).float()  # type: ignore[no-any-return]
        return self.whole_head(hidden).float()

    def whole_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits by way of the causal LM's own forward: some families scale or cap them."""
        self._inner.forward = lambda *args, **kwargs: _Given(hidden)
        try:
            return self.model(inputs_embeds=hidden, use_cache=False).logits  # type: ignore[no-any-return]
        finally:
            del self._inner.forward

    @contextmanager
    def first_layer_only(self) -> Iterator[None]:
        """The stage has only the first of its layers while this lasts."""
        layers: Any = getattr(self._inner, self._cut.layers)
        setattr(self._inner, self._cut.layers, layers[:1])
        try:
            yield
        finally:
            setattr(self._inner, self._cut.layers, layers)

    @contextmanager
    def without_layers(self) -> Iterator[None]:
        """The stage has neither layers nor what stands behind them while this lasts."""
        names = [self._cut.layers, *self._cut.last]
        kept = {name: getattr(self._inner, name, None) for name in names}
        try:
            for name, module in kept.items():
                if isinstance(module, nn.Module):
                    empty = nn.ModuleList() if name == self._cut.layers else PassThrough()
                    setattr(self._inner, name, empty)
            yield
        finally:
            for name, module in kept.items():
                if isinstance(module, nn.Module):
                    setattr(self._inner, name, module)


class _Given:
    """A base model's output that has hidden states and nothing else."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.last_hidden_state
