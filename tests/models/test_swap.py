"""A swapping model against a plain one: the same operations, the same bits, whatever is where."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.buffers import Region
from dvrt.errors import ProtocolError
from dvrt.models.hash_model import HashModel
from dvrt.models.spec import StageSpec
from dvrt.models.swap import SwappingModel
from dvrt.models.swap_frames import Frames
from dvrt.models.swap_hash import swapping_hash_model
from dvrt.models.swap_ranges import Ranges

CONTEXT, VOCAB, LAYERS = 40, 31, 3
LAYOUT = {"first_layer": 0, "stop_layer": LAYERS, "max_context": CONTEXT, "vocab_size": VOCAB}


def stage_spec(n_frames: int, n_microbatches: int, batch_size: int) -> StageSpec:
    return StageSpec(
        directory="",
        first=0,
        stop=LAYERS,
        n_layers=LAYERS,
        dtype="float32",
        n_microbatches=n_microbatches,
        batch_size=batch_size,
        max_context=CONTEXT,
        device="null",
        device_slots=n_frames,
    )


class Pair:
    """A swapping and a plain model that are told the same; their answers are compared."""

    def __init__(self, n_frames: int, n_microbatches: int, batch_size: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.n_microbatches, self.batch_size = n_microbatches, batch_size
        self.lengths = [0] * (n_microbatches * batch_size)
        self.swapping = swapping_hash_model(stage_spec(n_frames, n_microbatches, batch_size), VOCAB)
        self.plain = HashModel(n_slots=n_microbatches * batch_size, batch_size=batch_size, **LAYOUT)

    def chunk(self) -> None:
        slot = self.slot()
        start = self.rng.choice((0, self.lengths[slot]))
        n_tokens = min(self.rng.randint(1, 9), CONTEXT - start)
        if n_tokens < 1:
            return
        tokens = [self.rng.randrange(VOCAB) for _ in range(n_tokens)]
        same(model.chunk(slot, start, n_tokens, tokens) for model in self.both())
        self.lengths[slot] = start + n_tokens

    def decode(self) -> None:
        microbatch = self.rng.randrange(self.n_microbatches)
        first = microbatch * self.batch_size
        positions = [
            n if 0 < n < CONTEXT and self.rng.random() < 0.8 else -1
            for n in self.lengths[first : first + self.batch_size]
        ]
        tokens = [self.rng.randrange(VOCAB) for _ in positions]
        same(model.decode(microbatch, positions, tokens) for model in self.both())
        for row, position in enumerate(positions):
            if position >= 0:
                self.lengths[first + row] = position + 1

    def fork(self) -> None:
        source, target = self.slot(), self.slot()
        if source != target:
            n_tokens = self.rng.randint(0, self.lengths[source])
            for model in self.both():
                model.fork(source, target, n_tokens)
            self.lengths[target] = n_tokens

    def scrub(self) -> None:
        slot = self.slot()
        for model in self.both():
            model.scrub(slot)
        self.lengths[slot] = 0

    def rewind(self) -> None:
        """Go on with fewer entries than there were."""
        slot = self.slot()
        self.lengths[slot] = self.rng.randint(0, self.lengths[slot])

    def pack(self) -> None:
        ranges = []
        for slot in self.rng.sample(range(len(self.lengths)), self.rng.randint(1, 3)):
            start = self.rng.randint(0, self.lengths[slot])
            ranges.append((slot, start, self.rng.randint(start, self.lengths[slot])))
        ranges = [each for each in ranges if each[1] < each[2]]
        if ranges:
            same(flat(model.pack(ranges, 0, LAYERS)) for model in self.both())

    def unpack(self) -> None:
        source, target = self.slot(), self.slot()
        if source == target or not self.lengths[source]:
            return
        stop = self.lengths[source]
        buffer = bytearray(flat(self.plain.pack([(source, 0, stop)], 0, LAYERS)))
        for model in self.both():
            model.unpack(target, 0, stop, 0, LAYERS, buffer)
        self.lengths[target] = stop

    def copy_ahead(self) -> None:
        """What the pager does between steps: some of it, for any microbatch."""
        microbatch = self.rng.randrange(self.n_microbatches)
        slots = range(microbatch * self.batch_size, (microbatch + 1) * self.batch_size)
        if self.rng.random() < 0.5:
            self.swapping.swap_out(self.swapping.owes(slots))
        elif self.swapping.claim(microbatch):
            wanted = {slot: self.rng.randint(0, self.lengths[slot]) for slot in slots}
            self.swapping.swap_in(self.swapping.lacks(wanted))

    def slot(self) -> int:
        return self.rng.randrange(len(self.lengths))

    def both(self) -> tuple[SwappingModel, HashModel]:
        return self.swapping, self.plain


def same(answers: Any) -> None:
    one, other = answers
    assert np.array_equal(one, other)


def flat(packed: Any) -> Any:
    return np.frombuffer(Region.of(packed).view(), np.uint8)


@settings(max_examples=150, deadline=None)
@given(
    n_frames=st.integers(1, 4),
    n_microbatches=st.integers(1, 6),
    batch_size=st.integers(1, 3),
    seed=st.integers(0, 10**9),
)
def test_any_operations_give_the_same_bits(
    n_frames: int, n_microbatches: int, batch_size: int, seed: int
) -> None:
    pair = Pair(n_frames, n_microbatches, batch_size, seed)
    acts = ["chunk", "decode", "decode", "copy_ahead", "fork", "scrub", "rewind", "pack", "unpack"]
    weights = [5, 9, 9, 9, 2, 1, 1, 3, 2]
    for act in pair.rng.choices(acts, weights, k=80):
        if len(pair.lengths) >= 3 or act != "pack":
            getattr(pair, act)()


def test_a_log_that_is_nowhere_is_a_breach() -> None:
    model = swapping_hash_model(stage_spec(1, 3, 2), VOCAB)
    with pytest.raises(ProtocolError, match="5 entries wanted, 0 are stored"):
        model.decode(1, [5, -1], [0, 0])


def test_the_device_holds_its_frames_and_the_host_all() -> None:
    model = swapping_hash_model(stage_spec(2, 7, 4), VOCAB)
    one = 4 * CONTEXT * LAYERS * 8
    assert (model.kv_bytes, model.host_kv_bytes) == (2 * one, 7 * one)


def test_nothing_of_another_log_stays_behind_a_swapped_row() -> None:
    """What is not finite spreads through masked positions, so it must be gone."""
    model = swapping_hash_model(stage_spec(1, 2, 1), VOCAB)
    model.chunk(0, 0, 30, [1] * 30)
    model.chunk(1, 0, 4, [1] * 4)
    device = model._device
    assert isinstance(device, HashModel)
    assert not device.entries(0, 4, CONTEXT).any()
    model.decode(0, [30], [2])
    model.decode(1, [4], [2])
    assert not device.entries(0, 5, CONTEXT).any()


def test_a_copy_of_an_older_version_does_not_count() -> None:
    ranges = Ranges(1)
    ranges.computed(0, 0, 8)
    owed = ranges.owes(0)
    assert owed is not None
    ranges.computed(0, 3, 4)
    ranges.went_out(owed)
    assert (ranges.stored(0), ranges.cached(0)) == (0, 4)
    ranges.written(0, 0, 6)
    assert (ranges.stored(0), ranges.cached(0)) == (6, 0)


@pytest.mark.parametrize(("n_frames", "n_microbatches"), [(2, 3), (2, 4), (3, 5), (1, 2)])
def test_the_frame_whose_turn_is_last_is_given_up(n_frames: int, n_microbatches: int) -> None:
    frames = Frames(n_frames, n_microbatches)
    for turn in range(3 * n_microbatches):
        microbatch = turn % n_microbatches
        if frames.frame(microbatch) is None:
            victim = frames.victim()
            assert victim is not None
            others = [m for m in range(n_microbatches) if frames.frame(m) is not None]
            assert frames.held(victim) is None or frames.held(victim) == max(
                others, key=frames.turn
            )
            frames.give(victim, microbatch)
        frames.begin(microbatch)
    frames.pin(microbatch)
    assert frames.victim() != frames.frame(microbatch)


def test_turns_come_round_as_they_did_the_last_time() -> None:
    frames = Frames(2, 4)
    for microbatch in (0, 1, 2, 3) + (3, 1, 2, 0) * 2:
        frames.begin(microbatch)
    for expected in (3, 1, 2, 0) * 3:
        assert frames.upcoming()[0] == expected
        assert frames.turn(expected) == 0
        frames.begin(expected)


def test_a_microbatch_that_is_late_is_waited_for_and_an_idle_one_is_not() -> None:
    frames = Frames(2, 3)
    for microbatch in (0, 1, 2, 1):
        frames.begin(microbatch)
    assert frames.upcoming() == [0, 2]
    for microbatch in (2, 1):
        frames.begin(microbatch)
    assert frames.upcoming() == [2]
    assert frames.turn(0) > frames.turn(1) > frames.turn(2)
