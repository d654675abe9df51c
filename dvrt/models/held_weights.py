"""A checkpoint's tensors in memory, before it is known which of them this process will need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dvrt.models.checkpoint import TensorEntry
from dvrt.models.read_ahead import available_bytes

if TYPE_CHECKING:
    import torch

MOST_OF_AVAILABLE = 0.5
"""The share of the memory that could be had which is taken at most."""


class HeldWeights:
    """Tensors as the files have them, from ``hold`` until ``drop``.

    One thread may hold while another finds: what is not there yet is read by whoever needs it.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[Path, str], torch.Tensor] = {}
        self._is_over = False

    def hold(
        self,
        entries: Mapping[str, TensorEntry],
        *,
        is_over: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Read all of these, unless told to stop before; False where memory does not permit.

        Raises ModelError for a tensor that cannot be read.
        """
        from dvrt.models.weights import read_as_saved

        if sum(entry.nbytes for entry in entries.values()) > MOST_OF_AVAILABLE * available_bytes():
            return False
        for entry in entries.values():
            if self._is_over or is_over():
                break
            self._tensors[entry.file, entry.name] = read_as_saved(entry)
        if self._is_over:
            self._tensors.clear()
        return True

    def find(self, entry: TensorEntry) -> torch.Tensor | None:
        """The tensor in host memory, not to be written to; None if it is not there."""
        return self._tensors.get((entry.file, entry.name))

    @property
    def nbytes(self) -> int:
        return sum([tensor.nbytes for tensor in list(self._tensors.values())])

    def drop(self) -> None:
        """Let go of all tensors, and hold no more."""
        self._is_over = True
        self._tensors.clear()
