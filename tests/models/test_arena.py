"""The arena: entries where they are said to be, not copied, and shapes that need not be alike."""

from __future__ import annotations

import pytest
import torch

from dvrt.errors import ModelError
from dvrt.models.arena import Arena, Entries, Geometry
from dvrt.models.cache import ArenaCache


def make_arena(geometry: Geometry = Geometry(2, 8, 8), **changes: int) -> Arena:  # noqa: B008
    sizes = {"n_layers": 3, "n_slots": 4, "max_context": 100, "chunk_tokens": 64, **changes}
    return Arena(geometry=geometry, dtype=torch.float32, device=torch.device("cpu"), **sizes)


def fill(arena: Arena) -> None:
    arena.storage.copy_(torch.arange(arena.storage.numel()))


def test_sizes() -> None:
    arena = make_arena()
    assert (arena.scratch, arena.tokens) == (128, 192)
    assert arena.nbytes == 3 * 2 * 4 * 2 * 192 * 8 * 4
    assert make_arena(chunk_tokens=200).scratch == 256
    assert not arena.storage.any()


def test_entries_are_views_of_the_storage() -> None:
    arena = make_arena()
    entries = arena.entries(2, 5, 9)
    assert entries.keys.shape == entries.values.shape == (3, 2, 4, 8)
    entries.values.fill_(1.0)
    assert arena.storage.sum() == 3 * 2 * 4 * 8
    assert arena.entries(2, 4, 10).values.sum() == 3 * 2 * 4 * 8
    assert not arena.entries(1, 0, 128).values.any()


def test_layout_says_where_the_bytes_are() -> None:
    arena = make_arena()
    fill(arena)
    layout = arena.layout
    assert (layout.layers, layout.rows, layout.heads, layout.tokens) == (3, 4, 2, 192)
    whole = arena.storage.view(3, 2, 4, 2, 192, 8)
    for slot in range(4):
        entries = arena.entries(slot, 0, 192)
        assert torch.equal(entries.keys, whole[:, 0, slot])
        assert torch.equal(entries.values, whole[:, 1, slot])


def test_widths_that_differ() -> None:
    arena = make_arena(Geometry(1, 16, 4))
    fill(arena)
    entries = arena.entries(3, 10, 12)
    assert entries.keys.shape == (3, 1, 2, 16)
    assert entries.values.shape == (3, 1, 2, 4)
    together = torch.cat([arena.keys.reshape(-1), arena.values.reshape(-1)])
    assert torch.equal(together.sort().values, arena.storage)
    with pytest.raises(ModelError, match="no common layout"):
        _ = arena.layout


def test_fork_write_and_scrub() -> None:
    arena = make_arena()
    fill(arena)
    before = arena.storage.clone()
    arena.fork(1, 3, 40)
    assert torch.equal(arena.entries(3, 0, 40).keys, arena.entries(1, 0, 40).keys)
    old = before.view(3, 2, 4, 2, 192, 8)
    assert torch.equal(arena.entries(3, 40, 192).values, old[:, 1, 3, :, 40:])
    arena.write(0, 7, Entries(torch.zeros(3, 2, 2, 8), torch.ones(3, 2, 2, 8)))
    assert arena.entries(0, 7, 9).values.min() == 1
    assert not arena.entries(0, 7, 9).keys.any()
    arena.scrub(1)
    assert not arena.entries(1, 0, 192).keys.any()
    assert torch.equal(arena.entries(2, 0, 192).keys, old[:, 0, 2])


def test_too_large() -> None:
    with pytest.raises(ModelError, match="no memory for the KV cache of"):
        make_arena(n_slots=1 << 40)


def test_rows_are_written_where_they_belong() -> None:
    arena = make_arena()
    cache = ArenaCache(arena, first_layer=5)
    key = torch.arange(1, 3 * 2 * 8 + 1, dtype=torch.float32).view(3, 2, 1, 8)
    cache.aim_at_rows(1, [4, -1, 70], extent=128)
    keys, values = cache.update(key, -key, 6)
    assert keys.shape == (3, 2, 128, 8)
    assert torch.equal(arena.entries(1, 4, 5).keys[1], key[0])
    assert torch.equal(arena.entries(2, 128, 129).keys[1], key[1])  # scratch
    assert torch.equal(arena.entries(3, 70, 71).values[1], -key[2])
    assert int((arena.storage != 0).sum()) == 2 * key.numel()
    assert keys.data_ptr() == arena.keys[1, 1].data_ptr()
    assert values.data_ptr() == arena.values[1, 1].data_ptr()


def test_a_chunk_writes_no_more_than_its_tokens() -> None:
    arena = make_arena()
    cache = ArenaCache(arena, first_layer=0)
    key = torch.ones(1, 2, 64, 8)
    cache.aim_at_slot(2, 64, 10, extent=128)
    keys, _ = cache.update(key, key, 0)
    assert keys.shape == (1, 2, 128, 8)
    assert int((arena.storage != 0).sum()) == 2 * 2 * 10 * 8
    assert arena.entries(2, 64, 74).keys[0].min() == 1
