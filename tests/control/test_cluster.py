"""Disaggregation, losses and rebalancing as the scheduler decides them, on a cluster of tokens."""

from __future__ import annotations

import random

import pytest

from dvrt.control.events import Place
from dvrt.control.pipeline import PipelinePlan, PipelineShape, Purpose
from dvrt.requests import FinishReason, Request, SamplingParams
from tests.control.cluster import VOCAB, MiniCluster, expected_tokens

EOS = 7


def plan(
    number: int, purpose: Purpose, n_stages: int, rng: random.Random, *, repeats: bool = True
) -> PipelinePlan:
    shape = PipelineShape(
        n_stages=n_stages,
        n_microbatches=rng.randint(1, n_stages + 1),
        batch_size=rng.randint(1, 4),
        chunk_tokens=4,
        chunks_per_step=rng.randint(1, 2),
        repeats=repeats,
    )
    return PipelinePlan(id=number, purpose=purpose, shape=shape)


def split(first_id: int, rng: random.Random, *, repeats: bool) -> list[PipelinePlan]:
    """A colocated pipeline, or one for prompts and one for tokens."""
    if rng.random() < 0.3:
        return [plan(first_id, Purpose.BOTH, rng.randint(1, 4), rng, repeats=repeats)]
    return [
        plan(first_id, Purpose.PROMPT, rng.randint(1, 4), rng, repeats=repeats),
        plan(first_id + 1, Purpose.TOKEN, rng.randint(1, 4), rng, repeats=repeats),
    ]


def wishes(rng: random.Random, n_requests: int) -> list[Request]:
    return [
        Request(
            id=f"r{i}",
            prompt_ids=tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 18))),
            max_tokens=rng.randint(1, 12),
            n=rng.choice([1, 1, 1, 2, 5]),
            eos_ids=(EOS,) if rng.random() < 0.5 else (),
            sampling=SamplingParams(temperature=0.0),
        )
        for i in range(n_requests)
    ]


def run(seed: int, *, losses: float, rebalances: int, n_requests: int = 12) -> MiniCluster:
    """Random traffic with cancels over a random cluster; every token checked."""
    rng = random.Random(seed)
    repeats = seed % 2 == 0
    cluster = MiniCluster(split(0, rng, repeats=repeats), seed)
    asked = wishes(rng, n_requests)
    gone = {request.id for request in asked if rng.random() < 0.15}
    to_ask, next_id = list(asked), 2
    rebalance_at = {rng.randrange(20, 400) for _ in range(rebalances)}
    for turn in range(600):
        if to_ask and rng.random() < 0.1:
            cluster.submit(to_ask.pop())
        if gone and rng.random() < 0.05:
            cluster.cancel(rng.choice(sorted(gone)))
        if rng.random() < losses:
            cluster.lose(rng.choice([k for k in cluster.stages if k[0] not in cluster.retired]))
        if rng.random() < losses:
            cluster.cut()
        if cluster.rewinding and rng.random() < 0.2:
            cluster.rewind()
        if cluster.lost and rng.random() < 0.1:
            cluster.repair()
        if turn in rebalance_at:
            cluster.rebalance(split(next_id, rng, repeats=repeats))
            next_id += 2
        cluster.turn()
    for request in to_ask:
        cluster.submit(request)
    cluster.drain()
    for request in asked:
        for sample in range(request.n):
            check(cluster, request, sample, may_be_cut=request.id in gone)
    return cluster


def check(cluster: MiniCluster, request: Request, sample: int, *, may_be_cut: bool) -> None:
    tokens, expected = cluster.out[request.id, sample], expected_tokens(request, sample)
    assert tokens == expected[: len(tokens)]
    if cluster.ends[request.id, sample] is FinishReason.CANCELLED:
        assert may_be_cut
    else:
        assert tokens == expected


@pytest.mark.parametrize("seed", range(25))
def test_every_split_gives_the_same_tokens(seed: int) -> None:
    run(seed, losses=0.0, rebalances=0)


@pytest.mark.parametrize("seed", range(40))
def test_losses_at_any_moment_change_no_token(seed: int) -> None:
    run(seed, losses=0.02, rebalances=0)


@pytest.mark.parametrize("seed", range(25))
def test_rebalancing_loses_nothing(seed: int) -> None:
    cluster = run(seed, losses=0.0, rebalances=4)
    assert len(cluster.retired) >= 4


@pytest.mark.parametrize("seed", range(40))
def test_losses_while_rebalancing_change_no_token(seed: int) -> None:
    run(seed, losses=0.02, rebalances=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_losses_and_changes() -> None:
    for seed in range(1000, 4000):
        for losses, rebalances in ((0.02, 0), (0.05, 0), (0.0, 4), (0.02, 3)):
            run(seed, losses=losses, rebalances=rebalances)


def test_a_request_passes_its_places_in_order() -> None:
    rng = random.Random(3)
    plans = [plan(0, Purpose.PROMPT, 2, rng), plan(1, Purpose.TOKEN, 3, rng)]
    cluster = MiniCluster(plans, seed=1)
    asked = [request for request in wishes(rng, 12) if request.max_tokens > 1]
    for request in asked:
        cluster.submit(request)
    cluster.drain()
    order = list(Place)
    for request in asked:
        seen = [order.index(place) for place in cluster.places[request.id]]
        assert seen == sorted(seen)
        assert cluster.places[request.id][-1] in (Place.TRANSFER, Place.TOKEN)
