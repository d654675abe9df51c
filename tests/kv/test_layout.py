"""Layouts place every element once; boxes are the fewest runs; copies land where they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.errors import WireError
from dvrt.kv.handles import Handle, Spot
from dvrt.kv.layout import BOTH_PARTS, Layout, Part
from dvrt.kv.regions import Box, copies, runs
from dvrt.kv.spans import Span
from dvrt.strided import coalesce, pair_runs
from dvrt.wire import decode, encode

SIZES = {"layers": 2, "rows": 3, "heads": 2, "tokens": 8, "dim": 4, "item_bytes": 2}


def element_offsets(layout, box, table=None):
    """Every element's byte, computed one by one from the layout's definition."""
    out = np.empty((*box.shape, layout.dim), np.int64)
    for index in np.ndindex(*out.shape):
        layer, part, row, head, token, dim = index
        which = box.parts[part]
        base, by_axis = layout.strides(which)
        row, token = box.rows[row], box.tokens.start + token
        place = base + (box.layers.start + layer) * by_axis["L"]
        place += (box.heads.start + head) * by_axis["H"]
        if "N" in by_axis:
            block, token = divmod(token, layout.block_tokens)
            place += (table[row][block] if layout.is_paged else block) * by_axis["N"]
        place += token * by_axis["T"]
        place += 0 if layout.is_paged else row * by_axis["B"]
        if "X" in by_axis:
            place += dim // layout.lanes * by_axis["D"] + dim % layout.lanes * by_axis["X"]
        else:
            place += dim * by_axis["D"]
        out[index] = place
    return out


@st.composite
def layouts(draw, dim=None, item_bytes=None):
    blocks = draw(st.integers(1, 4))
    block_tokens = draw(st.sampled_from([1, 2, 4]))
    lanes = draw(st.sampled_from([1, 2, 4]))
    dim = dim or draw(st.sampled_from([4, 8]))
    sizes = {
        "layers": draw(st.integers(1, 4)),
        "rows": draw(st.integers(1, 4)),
        "heads": draw(st.integers(1, 4)),
        "tokens": blocks * block_tokens,
        "dim": dim,
        "item_bytes": item_bytes or draw(st.sampled_from([1, 2, 4])),
        "lanes": lanes,
        "block_tokens": block_tokens,
    }
    kind = draw(st.sampled_from(["one", "two", "paged"]))
    if kind == "paged":
        extra = draw(st.integers(0, 3))
        order = draw(st.sampled_from(["LCNTHD", "LNHTD", "NLCHTD", "LCNHDTX"]))
        return Layout(order=order, pages=sizes["rows"] * blocks + extra, **sizes)
    letters = "LBHTD" + "".join(x for x in "NX" if draw(st.booleans()))
    order = "".join(draw(st.permutations(letters)))
    if kind == "one":
        place = draw(st.integers(0, len(order)))
        return Layout(order=order[:place] + "C" + order[place:], **sizes)
    value = "".join(draw(st.permutations("LBHTD")))
    return Layout(order=order, value_order=value, **sizes)


@st.composite
def tables(draw, layout):
    if not layout.is_paged:
        return None
    each = layout.tokens // layout.block_tokens
    pages = draw(st.permutations(range(layout.pages)))
    return [list(pages[r * each : (r + 1) * each]) for r in range(layout.rows)]


@st.composite
def spans(draw, total, size=None):
    size = draw(st.integers(0, total)) if size is None else size
    start = draw(st.integers(0, total - size))
    return Span.of(start, start + size)


@st.composite
def boxes(draw, layout, shape=None):
    if shape is None:
        rows = draw(st.permutations(range(layout.rows)))[: draw(st.integers(1, layout.rows))]
        return Box(
            layers=draw(spans(layout.layers)),
            rows=tuple(rows),
            heads=draw(spans(layout.heads)),
            tokens=draw(spans(layout.tokens)),
            parts=draw(st.sampled_from([BOTH_PARTS, (Part.KEY,), (Part.VALUE,), (1, 0)])),
        )
    layers, _, rows, heads, tokens = shape
    return Box(
        layers=draw(spans(layout.layers, layers)),
        rows=tuple(draw(st.permutations(range(layout.rows)))[:rows]),
        heads=draw(spans(layout.heads, heads)),
        tokens=draw(spans(layout.tokens, tokens)),
    )


def bytes_of(offsets, nbytes):
    return np.concatenate(
        [np.arange(o, o + n) for o, n in zip(offsets, nbytes, strict=True)] or [np.empty(0, int)]
    )


@settings(max_examples=150)
@given(st.data())
def test_runs_are_exactly_the_box_and_as_few_as_can_be(data):
    layout = data.draw(layouts())
    table = data.draw(tables(layout))
    box = data.draw(boxes(layout))
    offsets, nbytes = runs(layout, box, table)
    elements = element_offsets(layout, box, table).ravel()
    expected = (elements[:, None] + np.arange(layout.item_bytes)).ravel()
    covered = bytes_of(offsets, nbytes)
    assert np.array_equal(np.sort(covered), np.sort(expected))
    assert np.unique(covered).size == covered.size
    gaps = int((np.diff(np.sort(expected)) > 1).sum()) + 1 if expected.size else 0
    assert offsets.size == gaps
    assert not expected.size or (expected.min() >= 0 and expected.max() < layout.nbytes)


@settings(max_examples=150)
@given(st.data())
def test_copies_take_each_element_to_its_place_once(data):
    source = data.draw(layouts())
    target = data.draw(layouts(dim=source.dim, item_bytes=source.item_bytes))
    shape = [
        data.draw(st.integers(1, min(getattr(source, n), getattr(target, n))))
        for n in ("layers", "rows", "heads", "tokens")
    ]
    shape = (shape[0], 2, *shape[1:])
    source_box = data.draw(boxes(source, shape))
    target_box = data.draw(boxes(target, shape))
    tables_ = data.draw(tables(source)), data.draw(tables(target))
    pairs = pair_runs(copies(source, source_box, target, target_box, *tables_))
    moved = np.stack(
        [bytes_of(pairs.source, pairs.nbytes), bytes_of(pairs.target, pairs.nbytes)], axis=1
    )
    lanes = np.arange(source.item_bytes)
    expected = np.stack(
        [
            (element_offsets(layout, box, table).ravel()[:, None] + lanes).ravel()
            for layout, box, table in (
                (source, source_box, tables_[0]),
                (target, target_box, tables_[1]),
            )
        ],
        axis=1,
    )
    order = np.argsort(moved[:, 1], kind="stable")
    assert np.array_equal(moved[order], expected[np.argsort(expected[:, 1], kind="stable")])


@settings(max_examples=60)
@given(st.data())
def test_a_handle_at_a_spot_is_the_copies_of_that_spot(data):
    source = data.draw(layouts())
    target = data.draw(layouts(dim=source.dim, item_bytes=source.item_bytes))
    both = (source, target)
    n_layers, n_heads, n_tokens = (
        data.draw(st.integers(1, min(getattr(s, n) for s in both)))
        for n in ("layers", "heads", "tokens")
    )
    layers = tuple(data.draw(spans(s.layers, n_layers)) for s in both)
    heads = tuple(data.draw(spans(s.heads, n_heads)) for s in both)
    tables_ = data.draw(tables(source)), data.draw(tables(target))
    handle = Handle(source=source, target=target, layers=layers, heads=heads, n_tokens=n_tokens)
    spots = [
        Spot(data.draw(st.integers(0, s.rows - 1)), data.draw(st.integers(0, s.tokens - n_tokens)))
        for s in both
    ]
    boxes_ = [
        Box(
            layers=layers[i],
            heads=heads[i],
            rows=(spots[i].row,),
            tokens=Span.of(spots[i].token, spots[i].token + n_tokens),
        )
        for i in (0, 1)
    ]
    got = pair_runs(handle.at(*spots, source_table=tables_[0], target_table=tables_[1]))
    want = pair_runs(copies(source, boxes_[0], target, boxes_[1], *tables_))
    assert sorted(zip(*map(list, got), strict=True)) == sorted(zip(*map(list, want), strict=True))


def test_the_papers_layout_has_the_papers_number_of_runs():
    """A token of GPT2-1.5B, B = 8, float16: L·B·H·(Dh/x) + L·B·H = 86,400 runs."""
    layout = Layout.paper(layers=48, rows=8, heads=25, tokens=2000, dim=64, item_bytes=2)
    box = Box(
        layers=Span.of(0, 48), rows=tuple(range(8)), heads=Span.of(0, 25), tokens=Span.of(7, 8)
    )
    offsets, nbytes = runs(layout, box)
    assert offsets.size == 86_400
    assert sorted(set(nbytes.tolist())) == [16, 128]
    assert nbytes.sum() == 48 * 8 * 25 * 64 * 2 * 2


def test_presets_place_elements_as_their_names_say():
    head = Layout.head_major(**SIZES)
    token = Layout.token_major(**SIZES)
    paper = Layout.paper(**SIZES)
    entry = SIZES["dim"] * SIZES["item_bytes"]
    assert head.offset(Part.KEY, token=1) == entry
    assert head.offset(Part.VALUE) == 3 * 2 * 8 * entry
    assert token.offset(Part.KEY, head=1) == entry
    assert token.offset(Part.KEY, token=1) == 2 * entry
    assert paper.offset(Part.VALUE) == paper.part_bytes
    assert paper.offset(Part.VALUE, token=1) == paper.part_bytes + entry
    assert head.nbytes == token.nbytes == paper.nbytes == 2 * 2 * 3 * 8 * 2 * entry
    assert head.entry_bytes == 2 * 2 * 2 * entry


def test_a_packed_layout_has_no_gaps_and_keeps_the_order():
    paged = Layout.paged(**SIZES, block_tokens=4, pages=9)
    packed = paged.packed(layers=1, rows=2, heads=2, tokens=5)
    assert packed.order == "LBTHD"
    offsets, nbytes = runs(packed, Box.whole(packed))
    assert offsets.tolist() == [0]
    assert nbytes.tolist() == [packed.nbytes]


def test_a_layout_travels_as_a_message():
    layout = Layout.paper(**SIZES)
    assert decode(encode(layout)) == layout
    broken = encode(layout).replace(b"LBHTD", b"LBHTT")
    with pytest.raises(WireError, match="LBHTT"):
        decode(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "LBHT"}, "order"),
        ({"order": "LBHTDD"}, "order"),
        ({"order": "LHTD"}, "pages"),
        ({"order": "LBNHTD", "block_tokens": 3}, "blocks of 3"),
        ({"order": "LBHDTX", "lanes": 3}, "lanes of 3"),
        ({"order": "LCBHTD", "value_order": "LBHTD"}, "one order"),
        ({"order": "LBHTD", "rows": 0}, "at least 1"),
        ({"order": "LNHTD", "block_tokens": 4}, "page"),
    ],
)
def test_what_is_no_layout_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Layout(**{**SIZES, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": Span.of(1, 3)}, "layers"),
        ({"rows": (0, 3)}, "rows"),
        ({"rows": (0, 0)}, "rows"),
        ({"heads": Span.of(0, 5)}, "heads"),
        ({"tokens": Span.of(0, 9)}, "tokens"),
        ({"parts": (Part.KEY, Part.KEY)}, "parts"),
    ],
)
def test_a_box_outside_its_layout_is_refused(change, message):
    box = {"layers": Span.of(0, 2), "rows": (0,), "heads": Span.of(0, 2), "tokens": Span.of(0, 4)}
    with pytest.raises(ValueError, match=message):
        runs(Layout.head_major(**SIZES), Box(**{**box, **change}))


def test_pages_that_are_missing_or_foreign_are_refused():
    layout = Layout.paged(**SIZES, block_tokens=4, pages=6)
    box = Box(layers=Span.of(0, 1), rows=(1,), heads=Span.of(0, 1), tokens=Span.of(0, 5))
    for table, message in (
        (None, "table"),
        ([[0, 1]], "0 pages, 2 needed"),
        ([[0, 1], [2]], "1 pages, 2 needed"),
        ([[0, 1], [2, 6]], "outside the pool"),
    ):
        with pytest.raises(ValueError, match=message):
            runs(layout, box, table)


def test_boxes_that_do_not_fit_each_other_are_refused():
    layout = Layout.head_major(**SIZES)
    other = Layout.head_major(**{**SIZES, "dim": 8})
    whole = Box.whole(layout)
    with pytest.raises(ValueError, match="dim differs: 4 here, 8 there"):
        copies(layout, whole, other, whole)
    smaller = Box(layers=whole.layers, rows=whole.rows, heads=whole.heads, tokens=Span.of(0, 1))
    with pytest.raises(ValueError, match="into one of"):
        copies(layout, whole, layout, smaller)


@given(st.lists(st.integers(1, 5), max_size=20), st.randoms())
def test_coalesced_runs_cover_the_same_bytes(sizes, random):
    edges = np.cumsum([0, *sizes])
    kept = [i for i in range(len(sizes)) if random.random() < 0.7]
    random.shuffle(kept)
    offsets = np.array([edges[i] for i in kept], np.int64)
    nbytes = np.array([sizes[i] for i in kept], np.int64)
    merged = coalesce(offsets, nbytes)
    assert sorted(bytes_of(*merged)) == sorted(bytes_of(offsets, nbytes))
    assert (merged[0][1:] > merged[0][:-1] + merged[1][:-1]).all()
