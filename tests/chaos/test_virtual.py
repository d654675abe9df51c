"""Hundreds of schedules in virtual time: no wrong token, no lost request, nothing left behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dvrt.chaos.campaign import Campaign
from dvrt.chaos.schedule import KINDS, Action, Ask, Schedule, draw_schedule
from dvrt.chaos.shrink import Shrinker
from dvrt.errors import ConfigError
from tests.chaos.planted import PLANTS, Plant, copies_are_believed, rewind_is_not_told

BLOCK = 20
N_QUICK = 200
N_CAMPAIGN = 10_000
LONG_BLOCK = 250
FOUND_WITHIN = 60


def fails(campaign: Campaign, seeds: range) -> list[str]:
    """The failing schedules, made short, as scripts for ``dvrt chaos --replay``."""
    tally = campaign.run(seeds)
    assert tally.n_seeds == len(seeds)
    return [f"{failure.faults}\n{failure.schedule.to_json()}" for failure in tally.failures]


def first_failing(campaign: Campaign) -> Schedule:
    for seed in range(FOUND_WITHIN):
        if campaign.run([seed], shrinks=False).failures:
            return campaign.schedule(seed)
    pytest.fail(f"{FOUND_WITHIN} seeds have not found it")


@pytest.mark.parametrize("first", range(0, N_QUICK, BLOCK))
def test_a_few_hundred_seeds(campaign: Campaign, first: int) -> None:
    assert fails(campaign, range(first, first + BLOCK)) == []


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(N_QUICK, N_CAMPAIGN, LONG_BLOCK))
def test_ten_thousand_seeds(campaign: Campaign, first: int) -> None:
    assert fails(campaign, range(first, min(first + LONG_BLOCK, N_CAMPAIGN))) == []


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_mistake_is_found(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    plant(monkeypatch)
    kinds, options = PLANTS[plant]
    found = first_failing(replace(campaign, kinds=kinds, options=options))
    monkeypatch.undo()
    assert campaign.verdict(found).is_right


def test_a_failing_schedule_becomes_a_short_script(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rewind_is_not_told(monkeypatch)
    schedule = first_failing(replace(campaign, kinds=("kill",)))
    shrunk = Shrinker(lambda each: not campaign.verdict(each).is_right).shrink(schedule)
    assert len(shrunk.actions) <= 2
    assert len(shrunk.asks) < len(schedule.asks)
    again = Schedule.from_json(shrunk.to_json())
    assert again == shrunk
    assert campaign.verdict(again) == campaign.verdict(shrunk)
    assert not campaign.verdict(again).is_right
    monkeypatch.undo()
    assert campaign.verdict(again).is_right


def test_a_seed_is_one_run(campaign: Campaign) -> None:
    schedules = [draw_schedule(seed) for seed in range(200)]
    assert schedules == [draw_schedule(seed) for seed in range(200)]
    assert {action.kind for each in schedules for action in each.actions} == set(KINDS)
    assert campaign.verdict(schedules[3]) == campaign.verdict(schedules[3])


def test_a_byte_of_a_copy_that_changes_is_noticed(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(
        seed=5,
        options={"stages": 3, "batch_size": 2},
        asks=tuple(Ask(number=number, at_s=0.0) for number in range(8)),
        actions=(
            *(Action(at_s=0.7, kind="corrupt", pick=pick) for pick in range(30)),
            Action(at_s=0.71, kind="kill", pick=1),
        ),
    )
    verdict = campaign.verdict(schedule)
    assert verdict.is_right and verdict.n_whole == 8
    assert verdict.injected.count("corrupt") == 30
    copies_are_believed(monkeypatch)
    assert "wrong token" in str(campaign.verdict(schedule).faults)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"seed": "x"}', json.dumps({"seed": 1, "options": {}, "asks": [{}]})]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="this is no schedule"):
        Schedule.from_json(text)
