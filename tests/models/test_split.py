"""Layers are cut into stages as evenly as the count allows, or as given."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.errors import ConfigError
from dvrt.models.split import split_as_given, split_evenly


@given(n_layers=st.integers(1, 120), n_stages=st.integers(1, 120))
def test_even_split(n_layers: int, n_stages: int) -> None:
    if n_stages > n_layers:
        with pytest.raises(ConfigError, match=f"has only {n_layers} layers"):
            split_evenly(n_layers, n_stages)
        return
    parts = split_evenly(n_layers, n_stages)
    assert parts[0][0] == 0
    assert parts[-1][1] == n_layers
    assert all(one[1] == other[0] for one, other in pairwise(parts))
    sizes = [stop - first for first, stop in parts]
    assert len(sizes) == n_stages
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)


def test_as_given() -> None:
    assert split_as_given(7, [1, 4, 2]) == ((0, 1), (1, 5), (5, 7))


@pytest.mark.parametrize("sizes", [[], [3], [4, 4], [7, 0], [8, -1]])
def test_impossible_sizes(sizes: list[int]) -> None:
    with pytest.raises(ConfigError, match="layers is"):
        split_as_given(7, sizes)


def test_no_stages() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        split_evenly(3, 0)
