"""A request that is named again must ask for what it asked for: stop strings and ends of text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dvrt.cluster.journal_store import Asked
from dvrt.cluster.sameness import ensure_same
from dvrt.errors import RequestRejected
from dvrt.requests import Request, SamplingParams

REQUEST = Request(
    id="r", prompt_ids=(1,), max_tokens=4, sampling=SamplingParams(seed=1), eos_ids=(7,)
)
ASKED = Asked(request=REQUEST, taken_at=0.0, stop=("a", "b"))


def test_the_order_of_stop_strings_and_the_deadline_mean_nothing() -> None:
    ensure_same(ASKED, replace(REQUEST, deadline_s=3.0), stop=("b", "a", "b"))


def test_a_seed_counts_if_somebody_gave_it() -> None:
    other = replace(REQUEST, sampling=SamplingParams(seed=2))
    ensure_same(ASKED, other, stop=ASKED.stop, is_seeded=False)
    with pytest.raises(RequestRejected, match="another seed: 1, now 2"):
        ensure_same(ASKED, other, stop=ASKED.stop)


@pytest.mark.parametrize(
    ("request_", "stop", "param"),
    [(REQUEST, ("a",), "stop"), (replace(REQUEST, eos_ids=()), ("a", "b"), "ignore_eos")],
)
def test_what_ends_the_text_counts(request_: Request, stop: tuple[str, ...], param: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        ensure_same(ASKED, request_, stop=stop)
    assert (caught.value.param, caught.value.code) == (param, "idempotency_mismatch")
