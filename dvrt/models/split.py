"""Cutting a model's layers into stages."""

from __future__ import annotations

from collections.abc import Sequence

from dvrt.errors import ConfigError


def split_evenly(
    n_layers: int, n_stages: int, *, name: str = "stages"
) -> tuple[tuple[int, int], ...]:
    """Half-open layer intervals whose sizes differ by one at most, the larger ones first.

    The last stage also holds the head, so it is never given a layer more than another.
    Raises ConfigError, which calls the number of stages ``name``, for fewer than one or more than
    layers.
    """
    if n_stages < 1:
        raise ConfigError(f"{name} is {n_stages}; at least 1")
    if n_stages > n_layers:
        raise ConfigError(f"{name} is {n_stages}; the model has only {n_layers} layers")
    size, larger = divmod(n_layers, n_stages)
    return _intervals([size + (stage < larger) for stage in range(n_stages)])


def split_as_given(n_layers: int, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Intervals of the given sizes. Raises ConfigError unless they are positive and cover all."""
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"layers is {list(sizes)}; each stage needs at least one layer")
    if sum(sizes) != n_layers:
        raise ConfigError(f"layers is {list(sizes)}, {sum(sizes)} in all; the model has {n_layers}")
    return _intervals(sizes)


def _intervals(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    first, out = 0, []
    for size in sizes:
        out.append((first, first + size))
        first += size
    return tuple(out)
