"""What fits a budget, with swapping and without."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.errors import ConfigError
from dvrt.models.budget import (
    KvShape,
    describe_fit,
    ensure_fits,
    ensure_swap_helps,
    kv_need,
    what_fits,
)

SHAPE = KvShape(entry_bytes=1000, context=300, chunk_tokens=16, batch_size=4, n_microbatches=5)
ONE = 384_000 * 4


def test_needs() -> None:
    plain, swapping = kv_need(SHAPE), kv_need(SHAPE, device_slots=2)
    assert (plain.device_bytes, plain.host_bytes) == (5 * ONE, 0)
    assert (swapping.device_bytes, swapping.host_bytes) == (2 * ONE, 5 * ONE)
    assert kv_need(SHAPE, device_slots=5) == plain


def test_a_small_budget_is_refused_with_what_would_fit() -> None:
    with pytest.raises(ConfigError) as caught:
        ensure_fits(SHAPE, 3 * ONE)
    text = str(caught.value)
    assert "microbatches of 4 rows with a context of 300 tokens need 7.324 MiB" in text
    assert "Without swap there fit batch_size 2 or max_context 128 or 3 microbatches." in text
    assert "With swap and device_slots 2 there fit batch_size 6 or max_context 512" in text
    assert ensure_fits(SHAPE, 3 * ONE, device_slots=2).device_bytes == 2 * ONE
    assert ensure_fits(SHAPE, None).device_slots == 5


def test_nothing_may_fit() -> None:
    assert describe_fit(SHAPE, 10) == (
        "Without swap nothing fits. With swap and device_slots 2 nothing fits."
    )


def test_swapping_is_refused_where_every_stage_fits_without() -> None:
    small = KvShape(entry_bytes=100, context=300, chunk_tokens=16, batch_size=4, n_microbatches=5)
    for budget in (None, 5 * ONE - 1):
        ensure_swap_helps([small, SHAPE], budget, device_slots=2)
    with pytest.raises(ConfigError) as caught:
        ensure_swap_helps([small, SHAPE], 5 * ONE, device_slots=2)
    text = str(caught.value)
    assert "all 5 microbatches of 4 rows need 7.324 MiB on a device" in text
    assert "with device_slots 2 there fits batch_size 10" in text


shapes = st.builds(
    KvShape,
    entry_bytes=st.integers(1, 10**6),
    context=st.integers(1, 4096),
    chunk_tokens=st.integers(1, 100),
    batch_size=st.integers(1, 64),
    n_microbatches=st.integers(1, 16),
)


@given(shape=shapes, budget=st.integers(1, 10**13), device_slots=st.integers(0, 5))
def test_what_is_said_to_fit_fits_and_one_more_does_not(
    shape: KvShape, budget: int, device_slots: int
) -> None:
    fit = what_fits(shape, budget, device_slots=device_slots)

    def fits(batch_size: int, context: int) -> bool:
        changed = KvShape(
            entry_bytes=shape.entry_bytes,
            context=context,
            chunk_tokens=shape.chunk_tokens,
            batch_size=batch_size,
            n_microbatches=shape.n_microbatches,
        )
        return kv_need(changed, device_slots=device_slots).device_bytes <= budget

    assert not fit.batch_size or fits(fit.batch_size, shape.context)
    assert not fits(fit.batch_size + 1, shape.context)
    assert not fit.context or fits(shape.batch_size, fit.context)
    assert not fits(shape.batch_size, fit.context + 1)
