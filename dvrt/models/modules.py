"""Modules that stand where a stage has none of the model's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class PassThrough(nn.Module):
    """Gives its first argument back."""

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden


class AddsNothing(nn.Module):
    """Stands for learned positions: a zero that broadcasts."""

    zero: torch.Tensor

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros((), dtype=dtype, device=device), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.zero
