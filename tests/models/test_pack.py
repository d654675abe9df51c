"""Packed entries: one form for every model, whatever the layers, ranges and widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dvrt.buffers import Region
from dvrt.errors import ProtocolError
from dvrt.models.arena import Arena, Geometry
from dvrt.models.hash_model import HashModel
from dvrt.models.tiny import write_tiny
from tests.models.pipeline import Pipeline

CONTEXT, SLOTS, LAYERS = 20, 5, 4
ranges = st.lists(
    st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 9), st.integers(10, CONTEXT)),
    min_size=1,
    max_size=6,
)
singles = st.lists(
    st.tuples(st.integers(0, SLOTS - 1), st.integers(0, CONTEXT - 1)).map(
        lambda at: (at[0], at[1], at[1] + 1)
    ),
    min_size=1,
    max_size=6,
)
cuts = st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).filter(lambda c: c[0] < c[1])


def arena(key_dim: int, value_dim: int, dtype: torch.dtype) -> Arena:
    made = Arena(
        n_layers=LAYERS,
        n_slots=SLOTS,
        max_context=CONTEXT,
        chunk_tokens=8,
        geometry=Geometry(3, key_dim, value_dim),
        dtype=dtype,
        device=torch.device("cpu"),
    )
    made.storage.copy_(torch.randn(made.storage.shape, generator=torch.Generator().manual_seed(1)))
    return made


@pytest.mark.parametrize("dims", [(4, 4), (4, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(wanted=ranges | singles, cut=cuts)
def test_position_by_position_layer_by_layer_keys_then_values(
    dims: tuple[int, int], dtype: torch.dtype, wanted: list[tuple[int, int, int]], cut: Any
) -> None:
    first, last = cut
    made = arena(*dims, dtype)
    expected = [
        part[layer, slot, :, position].flatten()
        for slot, start, stop in wanted
        for position in range(start, stop)
        for layer in range(first, last)
        for part in (made.keys, made.values)
    ]
    packed = made.pack(wanted, first, last)
    assert packed.is_contiguous()
    assert torch.equal(packed, torch.cat(expected))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("pack") / "tiny", "llama", n_layers=4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_log_packed_by_some_stages_goes_into_others(checkpoint: Path, dtype: str) -> None:
    """Bit by bit, through bytes, from a split in 3 to one in 2, and on as if nothing had been."""
    source, target = Pipeline(checkpoint, 3, dtype=dtype), Pipeline(checkpoint, 2, dtype=dtype)
    prompt = list(range(40, 75))
    source.prompt(2, prompt)
    for stage in source.stages:
        for other in target.stages:
            first = max(stage.spec.first, other.spec.first)
            last = min(stage.spec.stop, other.spec.stop)
            for start, stop in ((0, 20), (20, 21), (21, 35)) if first < last else ():
                packed = Region.of(stage.pack([(2, start, stop)], first, last)).view()
                assert len(packed) == (stop - start) * other.entry_bytes(first, last)
                other.unpack(5, start, stop, first, last, bytearray(packed))
    for position in range(35, 40):
        ours = source.step(0, {2: (position, 11)})[2]
        theirs = target.step(0, {5: (position, 11)})[5]
        assert np.array_equal(ours, theirs)


def test_each_layer_can_be_packed_when_it_is_told_of(checkpoint: Path) -> None:
    (stage,) = Pipeline(checkpoint).stages
    told: list[tuple[int, bytes]] = []

    def on_layer(layer: int) -> None:
        told.append((layer, bytes(Region.of(stage.pack([(1, 0, 7)], layer, layer + 1)).view())))

    stage.chunk(1, 0, 7, list(range(7)), on_layer)
    for layer, packed in told:
        assert packed == bytes(Region.of(stage.pack([(1, 0, 7)], layer, layer + 1)).view())
    assert [layer for layer, _ in told] == [0, 1, 2, 3]
    stage.chunk(1, 0, 7, list(range(7)))
    assert len(told) == 4


def hash_model() -> HashModel:
    return HashModel(
        first_layer=2, stop_layer=6, n_slots=SLOTS, batch_size=1, max_context=CONTEXT, vocab_size=50
    )


@given(wanted=ranges | singles)
def test_the_hash_model_packs_alike(wanted: list[tuple[int, int, int]]) -> None:
    model, other = hash_model(), hash_model()
    for slot in range(SLOTS):
        model.chunk(slot, 0, CONTEXT, list(range(slot, slot + CONTEXT)))
    expected = [model.entries(slot, p, p + 1)[1:3, 0] for slot, a, b in wanted for p in range(a, b)]
    packed = model.pack(wanted, 3, 5)
    assert np.array_equal(packed, np.concatenate(expected))
    (slot, start, stop), *_ = wanted
    other.unpack(4, start, stop, 3, 5, bytearray(model.pack([(slot, start, stop)], 3, 5)))
    same = model.entries(slot, start, stop)[1:3]
    assert np.array_equal(other.entries(4, start, stop)[1:3], same)


def test_the_wrong_size_is_refused(checkpoint: Path) -> None:
    for model in (hash_model(), Pipeline(checkpoint).stages[0]):
        right = bytes(model.entry_bytes(2, 4) * 3)
        model.unpack(0, 4, 7, 2, 4, right)
        for wrong in (right[:-8], right + bytes(8), b""):
            with pytest.raises(ProtocolError):
                model.unpack(0, 4, 7, 2, 4, wrong)
