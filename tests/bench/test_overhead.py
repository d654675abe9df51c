"""``bench overhead`` on a tiny model: all sides run, and what was streamed is checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dvrt.bench import overhead
from dvrt.errors import Corrupted

TINY = {"n_layers": 2, "hidden_size": 64, "n_heads": 4, "vocab_size": 307, "max_positions": 512}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "MODEL", TINY)
    monkeypatch.setattr(overhead, "QUICK_REPEATS", 2)


def test_quick() -> None:
    cores = os.sched_getaffinity(0)
    measured = overhead.measure(quick=True)
    assert os.sched_getaffinity(0) == cores
    assert measured.ratios.keys() == {"stream_slowdown", "file_slowdown"}
    results = measured.results
    step_bytes = 8 * 2 * 2 * 64 * 4
    assert results["step_bytes"] == step_bytes
    assert results["durable_bytes"] >= 3 * overhead.BLOCK_STEPS * step_bytes
    assert results["by"].startswith("shm://")
    assert results["cores"] <= 2
    assert all(len(results[side]["step_ms"]["repeats"]) == 2 for side in overhead.SIDES)


def test_another_copy_than_ours_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead.Peer, "digest", lambda peer: 7)
    with pytest.raises(Corrupted, match="what was streamed"):
        overhead.measure(quick=True)


def test_a_slowdown_is_that_of_neighbours() -> None:
    taken = {"none": [1.0, 10.0, 2.0], "stream": [1.1, 10.2, 2.0]}
    assert overhead.slowdown(taken, "stream") == pytest.approx(1.02)


def test_the_digest_is_of_the_block_alone(tmp_path: Path) -> None:
    import numpy as np

    from dvrt.buffers import Region
    from dvrt.kv.layout import Layout
    from dvrt.kv.spans import Span
    from dvrt.streaming import Cache

    layout = Layout.head_major(layers=1, rows=1, heads=1, tokens=4, dim=2, item_bytes=4)
    shape = overhead.Shape(layout=layout, rows=1, tokens=Span.of(1, 3))
    memory = np.zeros(layout.nbytes, np.uint8)
    cache = Cache(region=Region.of(memory), layout=layout)
    empty = shape.digest(cache)
    memory[0] = memory[-1] = 1
    assert shape.digest(cache) == empty
    memory[8] = 1
    assert shape.digest(cache) != empty
