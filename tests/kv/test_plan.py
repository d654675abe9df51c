"""The re-sharding plan: the paper's worked examples, and every element moved exactly once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.errors import ConfigError
from dvrt.kv.layout import Layout, Part
from dvrt.kv.plan import (
    Side,
    Worker,
    layer_transfers,
    of_source,
    of_target,
    plan,
    uniform_batches,
)
from dvrt.kv.regions import copies
from dvrt.kv.spans import Span, split_evenly, split_remainder_last
from dvrt.strided import pair_runs
from dvrt.wire import decode, encode

ONE_HEAD = (Span.of(0, 1),)


def side(layers, heads=ONE_HEAD, batches=((0,),)):
    return Side(layers=tuple(layers), heads=tuple(heads), batches=tuple(batches))


@pytest.mark.parametrize(
    ("total", "sources", "targets", "expected"),
    [
        (64, 1, 3, [(0, 0, 0, 21), (0, 1, 21, 42), (0, 2, 42, 64)]),
        (64, 2, 4, [(0, 0, 0, 16), (0, 1, 16, 32), (1, 2, 32, 48), (1, 3, 48, 64)]),
        (
            70,
            3,
            4,
            [
                (0, 0, 0, 17),
                (0, 1, 17, 23),
                (1, 1, 23, 34),
                (1, 2, 34, 46),
                (2, 2, 46, 51),
                (2, 3, 51, 70),
            ],
        ),
        (48, 4, 2, [(0, 0, 0, 12), (1, 0, 12, 24), (2, 1, 24, 36), (3, 1, 36, 48)]),
    ],
)
def test_the_papers_layer_mappings(total, sources, targets, expected):
    """Worked examples: layers over stages with the remainder on the last."""
    a = side(split_remainder_last(total, sources))
    b = side(split_remainder_last(total, targets))
    found = [(p, q, span.start, span.stop) for p, q, span in layer_transfers(a, b)]
    assert found == expected


def test_the_papers_record_sizes():
    """OPT-66B, Dt = 4, TP = 2, B = 8, P = 1000, float16: 73.7 MB a layer, 1.18 MB a token."""
    layout = Layout.paper(layers=16, rows=8, heads=36, tokens=2000, dim=128, item_bytes=2)
    assert layout.layers * 8 * layout.heads * layout.dim * 2 == 1_179_648
    prompt = layout.packed(layers=1, rows=8, heads=36, tokens=1000)
    assert prompt.part_bytes == 73_728_000
    assert layout.part_bytes == 2_359_296_000
    assert layout.entry_bytes * 8 == 2 * 1_179_648


@pytest.mark.parametrize("sources", range(1, 9))
def test_every_pair_of_depths_moves_every_layer_once(sources):
    for targets in range(1, 9):
        for total in (8, 13, 70):
            for split in (split_evenly, split_remainder_last):
                found = layer_transfers(side(split(total, sources)), side(split(total, targets)))
                moved = [layer for _, _, span in found for layer in range(span.start, span.stop)]
                assert sorted(moved) == list(range(total))


@st.composite
def partitions(draw, total, most):
    edges = draw(st.sets(st.integers(1, total - 1), max_size=most - 1)) if total > 1 else set()
    bounds = [0, *sorted(edges), total]
    return tuple(Span.of(a, b) for a, b in itertools.pairwise(bounds))


@st.composite
def head_splits(draw, total):
    """A partition, some ranks of which may be there twice (fewer KV heads than ranks)."""
    spans = draw(partitions(total, 3))
    return spans * 2 if draw(st.booleans()) else spans


@st.composite
def batchings(draw, requests):
    order = draw(st.permutations(requests))
    size = draw(st.integers(1, 4))
    return uniform_batches(order, size)


ORDERS = ("LCBHTD", "LCBTHD", "LBHDTX", "LBHNTD", "BTLHD")


@settings(max_examples=80)
@given(st.data())
def test_each_element_moves_exactly_once_and_lands_where_it_should(data):
    """Whole caches as arrays on both sides, moved by the plan's copies run by run."""
    n_layers, n_heads = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    n_tokens, dim = 4, 2
    requests = list(range(data.draw(st.integers(1, 5))))
    extra = [9] if data.draw(st.booleans()) else []
    source = Side(
        layers=data.draw(partitions(n_layers, 8)),
        heads=data.draw(head_splits(n_heads)),
        batches=data.draw(batchings(requests + extra)),
    )
    target = Side(
        layers=data.draw(partitions(n_layers, 8)),
        heads=data.draw(head_splits(n_heads)),
        batches=data.draw(batchings(requests)),
    )
    tokens = {}
    for request in requests:
        start = data.draw(st.integers(0, n_tokens - 1))
        tokens[request] = Span.of(start, data.draw(st.integers(start + 1, n_tokens)))
    memory, layouts = {}, {}
    for name, one in (("source", source), ("target", target)):
        order = data.draw(st.sampled_from(ORDERS))
        for worker in one.workers:
            for batch, rows in enumerate(one.batches):
                layout = Layout(
                    order=order,
                    layers=one.layers[worker.stage].size,
                    rows=len(rows),
                    heads=one.heads[worker.rank].size,
                    tokens=n_tokens,
                    dim=dim,
                    item_bytes=4,
                    lanes=2,
                    block_tokens=2,
                )
                layouts[name, worker, batch] = layout
                memory[name, worker, batch] = np.full(layout.nbytes // 4, -1, np.int32)
                if name == "source":
                    fill(memory[name, worker, batch], layout, one, worker, batch)
    writes = {key: np.zeros_like(array) for key, array in memory.items()}
    for copy in plan(source, target, tokens):
        here = ("source", copy.source, copy.source_batch)
        there = ("target", copy.target, copy.target_batch)
        made = copies(layouts[here], copy.source_box, layouts[there], copy.target_box)
        for a, b, n in zip(*((column // 4).tolist() for column in pair_runs(made)), strict=True):
            memory[there][b : b + n] = memory[here][a : a + n]
            writes[there][b : b + n] += 1
    for worker in target.workers:
        for batch in range(len(target.batches)):
            key = ("target", worker, batch)
            expected = np.full_like(memory[key], -1)
            fill(expected, layouts[key], target, worker, batch, tokens)
            assert np.array_equal(memory[key], expected)
            assert np.array_equal(writes[key], (expected >= 0).astype(np.int32))


def fill(array, layout, one, worker, batch, tokens=None):
    """Write to each element a number that says globally which element it is."""
    layers, heads = one.layers[worker.stage], one.heads[worker.rank]
    for part in Part:
        by_axis = layout.strides(part).by_axis
        d = np.arange(layout.dim)
        within = (
            np.arange(layers.size)[:, None, None] * by_axis["L"]
            + np.arange(heads.size)[None, :, None] * by_axis["H"]
            + d * by_axis["X" if "X" in by_axis else "D"]
        )
        place = np.ix_(np.arange(layers.start, layers.stop), np.arange(heads.start, heads.stop), d)
        for row, request in enumerate(one.batches[batch]):
            if request is None:
                continue
            span = tokens[request] if tokens else Span.of(0, layout.tokens)
            for token in range(span.start, span.stop):
                name = (part, place[0], request, place[1], token, place[2])
                offsets = layout.offset(part, row=row, token=token) + within
                array[offsets // 4] = np.ravel_multi_index(name, (2, 10, 10, 5, 4, 2))


def test_source_and_target_workers_agree_on_what_they_exchange():
    a = side(split_evenly(7, 3), split_evenly(4, 2), uniform_batches(range(5), 2))
    b = side(split_evenly(7, 2), split_evenly(4, 4), uniform_batches(range(5), 3))
    copies_ = plan(a, b, Span.of(0, 6))
    sent = {(w, to): list(cs) for w in a.workers for to, cs in of_source(copies_, w).items()}
    got = {(frm, w): list(cs) for w in b.workers for frm, cs in of_target(copies_, w).items()}
    assert sent == got
    assert sum(map(len, sent.values())) == len(copies_)
    assert {w for w, _ in sent} == set(a.workers)


def test_a_copy_by_layer_is_the_same_copy():
    copy = plan(side([Span.of(0, 5)]), side([Span.of(0, 5)]), Span.of(0, 3))[0]
    layers = list(copy.by_layer())
    assert [c.layers.start for c in layers] == [0, 1, 2, 3, 4]
    assert all(c.source_box.layers == c.target_box.layers == c.layers for c in layers)


def test_holders_of_the_same_heads_take_turns():
    a = side([Span.of(0, 1)], [Span.of(0, 2)] * 2)
    b = side([Span.of(0, 1)], split_evenly(2, 2))
    sent = {(c.source.rank, c.target.rank) for c in plan(a, b, Span.of(0, 1))}
    assert sent == {(0, 0), (1, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (Span.of(0, 2), Span.of(3, 4))}, "expected 2"),
        ({"layers": (Span.of(1, 4),)}, "expected 0"),
        ({"heads": (Span.of(0, 2), Span.of(3, 4))}, "heads"),
        ({"batches": ((0, 1), (1,))}, "two rows"),
    ],
)
def test_what_is_no_side_is_refused(change, message):
    fits = {"layers": (Span.of(0, 4),), "heads": (Span.of(0, 4),), "batches": ((0,),)}
    with pytest.raises(ValueError, match=message):
        Side(**{**fits, **change})


def test_sides_that_do_not_match_are_refused_by_name():
    a = side([Span.of(0, 4)])
    with pytest.raises(ConfigError, match="n_layers differs: 4 at the source, 5"):
        plan(a, side([Span.of(0, 5)]), Span.of(0, 1))
    with pytest.raises(ConfigError, match="n_heads differs"):
        plan(a, side([Span.of(0, 4)], [Span.of(0, 2)]), Span.of(0, 1))
    with pytest.raises(ConfigError, match="request 7"):
        plan(a, side([Span.of(0, 4)], batches=((7,),)), Span.of(0, 1))


def test_workers_and_sides_travel():
    one = side(split_evenly(7, 3), batches=((1, None), (2, 3)))
    assert decode(encode(one)) == one
    assert one.workers[1] == Worker(1, 0)


@given(st.integers(1, 200), st.integers(1, 40))
def test_splits_cover_the_whole(total, parts):
    if parts > total:
        with pytest.raises(ValueError, match="parts"):
            split_evenly(total, parts)
        return
    for split in (split_evenly, split_remainder_last):
        spans = split(total, parts)
        assert [s.start for s in spans] == [0, *[s.stop for s in spans[:-1]]]
        assert spans[-1].stop == total
        assert min(s.size for s in spans) >= 1
    assert max(s.size for s in split_evenly(total, parts)) <= -(-total // parts)
