"""Who goes when stages do not reach each other, and when nobody does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from dvrt.cluster import partings
from dvrt.cluster.partings import MIN_CUTS, PATIENCE_S, TRIED_S, Partings
from dvrt.protocol.messages import Unreached

NEAR, FAR = 0, 1
"""Pipelines: prompts, and tokens."""


@pytest.fixture(autouse=True)
def _no_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only neighbours that connect again need them, and a loop."""
    monkeypatch.setattr(partings, "Alarms", dict)


@dataclass(eq=False)
class FakeSeat:
    key: tuple[int, int]
    owner: str
    is_live: bool = True
    told: Any = None

    @property
    def actor(self) -> str:
        return f"local://{self.owner}/p{self.key[0]}-s{self.key[1]}"


@dataclass
class Room:
    """Two prompt stages and three token stages; it is topology, overseer and clock at once."""

    now: float = 0.0
    seats: list[FakeSeat] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        keys = [(NEAR, stage) for stage in range(2)] + [(FAR, stage) for stage in range(3)]
        self.seats = [FakeSeat(key, f"w{n}") for n, key in enumerate(keys)]
        self.partings = Partings(self, None, self)  # type: ignore[arg-type]

    @property
    def topology(self) -> Room:
        return self

    def time(self) -> float:
        return self.now

    def seat(self, pipeline: int, stage: int) -> FakeSeat | None:
        return next((each for each in self.seats if each.key == (pipeline, stage)), None)

    def lost(self, name: str, reason: str, silence_s: float) -> None:
        """Another worker takes its place at once."""
        assert "do not reach each other" in reason
        self.gone.append(name)
        for seat in self.seats:
            if seat.owner == name:
                seat.owner = f"{name}+"

    def miss(self, near: int, *fars: int) -> None:
        """A prompt stage does not reach these token stages."""
        for far in fars:
            actor = self.seat(FAR, far)
            assert actor is not None
            self.partings.unreached(
                Unreached(pipeline=NEAR, stage=near, actor=actor.actor, reason="no route")
            )

    def miss_for(self, seconds: float, near: int, *fars: int) -> None:
        """Once a second, until somebody goes."""
        before, end = len(self.gone), self.now + seconds
        while self.now < end and len(self.gone) == before:
            self.miss(near, *fars)
            self.now += 1.0


def test_one_of_two_goes_when_patience_ends_and_the_other_the_next_time() -> None:
    room = Room()
    room.miss_for(PATIENCE_S, 0, 1)
    assert room.gone == []
    room.miss_for(2.0, 0, 1)
    assert room.gone == ["w3"]
    room.miss_for(PATIENCE_S + 2, 0, 1)
    assert room.gone == ["w3", "w0"]


@pytest.mark.parametrize("n_fars", [2, 3])
def test_the_one_whom_several_miss_goes(n_fars: int) -> None:
    room = Room()
    room.miss_for(PATIENCE_S + 2, 0, *range(n_fars))
    assert room.gone == ["w0"]


def test_then_it_is_the_others_turn() -> None:
    """It was not the one whom several miss: two workers have both lost the way to its host."""
    room = Room()
    room.miss_for(PATIENCE_S + 2, 0, 1, 2)
    assert room.gone == ["w0"]
    room.miss_for(PATIENCE_S + 2, 0, 1, 2)
    assert room.gone[0] == "w0" and room.gone[1] in ("w3", "w4")


def test_partings_of_those_who_are_gone_do_not_count() -> None:
    """The first stage once missed a worker that has been replaced since, for another reason."""
    room = Room()
    room.miss(0, 2)
    room.seats[4].owner = "w9"
    room.miss_for(PATIENCE_S + 2, 0, 1)
    assert room.gone == ["w3"]


def test_what_arrives_ends_it_for_its_pipeline_alone() -> None:
    room = Room()
    seat = room.seat(FAR, 1)
    assert seat is not None
    for _ in range(MIN_CUTS):
        room.miss_for(PATIENCE_S - 1, 0, 1)
        room.partings.arrived(seat, NEAR)  # type: ignore[arg-type]
    assert room.gone == []
    for _ in range(2):
        room.miss_for(PATIENCE_S - 1, 0, 1)
        room.partings.arrived(seat, 7)  # type: ignore[arg-type]
    assert room.gone == ["w3"]


def test_what_was_long_ago_does_not_count() -> None:
    room = Room()
    for _ in range(2 * MIN_CUTS):
        room.miss(0, 1)
        room.now += TRIED_S + 1
    assert room.gone == []


def test_a_parting_is_forgotten_with_its_pipeline() -> None:
    room = Room()
    room.miss_for(PATIENCE_S - 1, 0, 1)
    room.partings.retired(FAR)
    room.miss_for(PATIENCE_S - 1, 0, 1)
    assert room.gone == []


def test_nobody_goes_for_a_stage_that_is_not_there() -> None:
    room = Room()
    rubbish = ("local://w3/p9-s9", "", room.seats[0].actor)
    for _ in range(20):
        for actor in rubbish:
            room.partings.unreached(Unreached(pipeline=NEAR, stage=0, actor=actor, reason=""))
        room.partings.unreached(Unreached(pipeline=5, stage=5, actor="", reason=""))
        room.now += 1.0
    room.seats[3].is_live = False
    room.miss_for(20.0, 0, 1)
    assert room.gone == []
