"""Copies beside compute: the order of steps, the overlap, and never a frame taken too early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from dvrt.control.steps import Chunk, Decode, Step
from dvrt.models.hash_model import HashModel
from dvrt.models.spec import StageSpec
from dvrt.models.swap_hash import swapping_hash_model
from dvrt.models.swap_ranges import Range
from dvrt.stages.compute import Compute, LoopCompute, ThreadCompute
from dvrt.stages.pager import Copied, Pager
from dvrt.virtual import precise_clock, run_virtual

B, CONTEXT, VOCAB, LAYERS = 2, 48, 31, 3
LAYOUT = {"first_layer": 0, "stop_layer": LAYERS, "max_context": CONTEXT, "vocab_size": VOCAB}
ENTRY = LAYERS * 8
STEP_S = 0.01


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


class Stage:
    """A pager over a hash model, its two lanes, and a plain model that is told the same."""

    def __init__(
        self, n_microbatches: int, n_frames: int, *, bandwidth: float, make: Callable[[], Compute]
    ) -> None:
        self.clock = precise_clock(asyncio.get_running_loop())
        self.n_microbatches = n_microbatches
        self.model = swapping_hash_model(stage_spec(n_frames, n_microbatches, B), VOCAB)
        self.plain = HashModel(n_slots=n_microbatches * B, batch_size=B, **LAYOUT)
        self.lanes = [make() for _ in range(3)]
        self.copied: list[Copied] = []
        self.failures: list[BaseException] = []
        self.pager = Pager(
            self.model,
            compute=self.lanes[0],
            lane_in=self.lanes[1],
            lane_out=self.lanes[2],
            entry_bytes=ENTRY,
            bandwidth=bandwidth,
            clock=self.clock,
            on_copied=self.copied.append,
            on_failure=self.failures.append,
        )
        self._ids = 0

    def step(self, microbatch: int, position: int) -> asyncio.Future[Any]:
        """A prompt of as many tokens for each row, or one token for each, compared with plain."""
        slots = range(microbatch * B, (microbatch + 1) * B)
        self._ids += 1
        if position == 0:
            chunks = [Chunk(slot=s, seq=s, epoch=0, start=0, tokens=(1, s, 3)) for s in slots]
            step = Step(id=self._ids, microbatch=microbatch, chunks=tuple(chunks))
        else:
            decodes = [
                Decode(slot=s, seq=s, epoch=0, position=position, token=s + position) for s in slots
            ]
            step = Step(id=self._ids, microbatch=microbatch, decodes=tuple(decodes))
        return self.pager.submit(step, partial(self._run, step), cost_s=STEP_S)

    def _run(self, step: Step) -> bool:
        return all(
            np.array_equal(one, other)
            for one, other in zip(run(self.model, step), run(self.plain, step), strict=True)
        )

    async def rounds(self, n: int) -> None:
        """All microbatches in turn, each step asked for when the microbatch's last one is back."""
        last: dict[int, asyncio.Future[Any]] = {}
        for position in [0, *range(3, 3 + n)]:
            for microbatch in range(self.n_microbatches):
                if microbatch in last:
                    assert (await last[microbatch]).value
                last[microbatch] = self.step(microbatch, position)
        assert all(done.value for done in await asyncio.gather(*last.values()))

    async def one_by_one(self, n: int, order: Sequence[int]) -> None:
        """Microbatches in this order, each step asked for when the one before it is back."""
        for position in [0, *range(3, 3 + n)]:
            for microbatch in order:
                assert (await self.step(microbatch, position)).value

    def close(self) -> None:
        self.pager.close()
        for lane in self.lanes:
            lane.close()
        assert not self.failures


def run(model: Any, step: Step) -> Sequence[Any]:
    if step.chunks:
        return [model.chunk(c.slot, c.start, len(c.tokens), c.tokens) for c in step.chunks]
    positions = [item.position for item in step.decodes]
    return [model.decode(step.microbatch, positions, [item.token for item in step.decodes])]


@pytest.mark.parametrize("n_frames", [1, 2, 3])
@pytest.mark.parametrize("n_microbatches", [1, 2, 3, 4, 5])
def test_tokens_are_those_without_swapping(n_microbatches: int, n_frames: int) -> None:
    async def main() -> None:
        stage = Stage(n_microbatches, n_frames, bandwidth=1e5, make=LoopCompute)
        await stage.rounds(30)
        moved = stage.pager.statistics()
        assert (moved.in_bytes > 0) == (n_frames < n_microbatches)
        assert moved.steps == 30 * n_microbatches  # those that decode
        stage.close()

    run_virtual(main())


@pytest.mark.parametrize("n_microbatches", [2, 3, 5])
async def test_threads_that_copy_and_compute_at_once(n_microbatches: int) -> None:
    make = partial(ThreadCompute, "swap test")
    stage = Stage(n_microbatches, 2 if n_microbatches > 2 else 1, bandwidth=0.0, make=make)
    try:
        global_step, expected = stage._ids, 26 * n_microbatches
        await stage.rounds(25)
        assert stage._ids - global_step == expected
    finally:
        await asyncio.to_thread(stage.close)


def turn_s(n_microbatches: int, n_frames: int, bandwidth: float, n: int = 30) -> float:
    """Mean seconds of a step in steady rounds."""

    async def main() -> float:
        stage = Stage(n_microbatches, n_frames, bandwidth=bandwidth, make=LoopCompute)
        await stage.rounds(n)
        stage.close()
        return stage.clock.time() / ((n + 1) * n_microbatches)

    return run_virtual(main())


def test_a_copy_that_is_shorter_than_a_step_costs_nothing() -> None:
    longest = B * CONTEXT * ENTRY
    assert turn_s(4, 2, longest / (0.9 * STEP_S)) == pytest.approx(STEP_S, rel=0.02)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 2, 0), (1, 0, 3, 2)])
def test_the_next_one_is_foreseen_in_any_order_that_comes_round(order: Sequence[int]) -> None:
    n, longest = 40, B * CONTEXT * ENTRY

    async def main() -> float:
        stage = Stage(4, 2, bandwidth=longest / (0.9 * STEP_S), make=LoopCompute)
        await stage.one_by_one(n, order)
        stage.close()
        return stage.clock.time() / ((n + 1) * len(order))

    assert run_virtual(main()) == pytest.approx(STEP_S, rel=0.04)


def test_a_step_takes_as_long_as_the_longer_of_copy_and_compute() -> None:
    n, per_entry_s = 40, 1e-3
    bandwidth = ENTRY / per_entry_s
    transfers = [B * position * per_entry_s for position in [0, *range(3, 3 + n)]]
    bound = sum(max(STEP_S, transfer) for transfer in transfers) / len(transfers)
    assert 0.94 * turn_s(5, 2, bandwidth, n) <= bound <= turn_s(5, 2, bandwidth, n)


def test_one_frame_overlaps_nothing() -> None:
    n, per_entry_s = 20, 1e-4
    lengths = [B * position * per_entry_s for position in [0, *range(3, 3 + n)]]
    both = STEP_S + (sum(lengths) / len(lengths)) + B * per_entry_s
    assert turn_s(3, 1, ENTRY / per_entry_s, n) == pytest.approx(both, rel=0.05)


def test_more_frames_copy_less() -> None:
    async def main(n_frames: int) -> int:
        stage = Stage(5, n_frames, bandwidth=0.0, make=LoopCompute)
        await stage.rounds(20)
        stage.close()
        return stage.pager.statistics().in_bytes

    moved = [run_virtual(main(n_frames)) for n_frames in (2, 3, 4, 5)]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[2] > moved[3] == 0


def test_no_frame_is_filled_while_a_copy_still_reads_it() -> None:
    """The out-lane is made slow: a frame must wait for it before it is another's."""

    async def main() -> None:
        stage = Stage(3, 2, bandwidth=0.0, make=LoopCompute)
        going_out: list[tuple[int, Range]] = []
        plain_submit = stage.lanes[2].submit

        def slow(work: Callable[[], Any], *, cost_s: float = 0.0) -> asyncio.Future[Any]:
            ranges = work.args[0]  # type: ignore[attr-defined]
            frame = stage.model.frames.frame(ranges[0].slot // B)
            assert frame is not None
            reading = [(frame, each) for each in ranges]
            going_out.extend(reading)

            def then() -> Any:
                for each in reading:
                    going_out.remove(each)
                    assert stage.model.frames.frame(each[1].slot // B) == each[0]
                return work()

            return plain_submit(then, cost_s=3 * STEP_S)

        plain_in = stage.lanes[1].submit

        def watched(work: Callable[[], Any], *, cost_s: float = 0.0) -> asyncio.Future[Any]:
            filled = stage.model.frames.frame(work.args[0][0].slot // B)  # type: ignore[attr-defined]
            assert filled not in [frame for frame, _ in going_out]
            return plain_in(work, cost_s=cost_s)

        stage.lanes[2].submit = slow  # type: ignore[method-assign,assignment]
        stage.lanes[1].submit = watched  # type: ignore[method-assign,assignment]
        await stage.rounds(20)
        stage.close()

    run_virtual(main())


def test_the_next_one_is_on_its_way_before_its_step_is_there() -> None:
    async def main() -> None:
        stage = Stage(3, 2, bandwidth=ENTRY * B * 13 / (0.8 * STEP_S), make=LoopCompute)
        await stage.rounds(10)
        await asyncio.sleep(1)
        stage.copied.clear()
        began = stage.clock.time()
        await stage.step(0, 13)
        (brought,) = [each for each in stage.copied if each.direction == "in"]
        assert (brought.microbatch, brought.began) == (1, began)
        stage.close()

    run_virtual(main())


def test_a_failing_step_fails_its_future_and_a_failing_copy_the_stage() -> None:
    async def main() -> None:
        stage = Stage(3, 2, bandwidth=0.0, make=LoopCompute)
        broken = stage.pager.submit(Step(id=1, microbatch=0), lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await broken

        def refuse(_: Any) -> None:
            raise OSError("no such memory")

        stage.model.swap_out = refuse  # type: ignore[method-assign,assignment]
        await stage.step(1, 0)
        await asyncio.sleep(0.1)
        assert [str(error) for error in stage.failures] == ["no such memory"]
        stage.failures.clear()
        stage.close()

    run_virtual(main())


def test_closing_drops_what_waits() -> None:
    async def main() -> None:
        stage = Stage(2, 1, bandwidth=0.0, make=LoopCompute)
        first, second = stage.step(0, 0), stage.step(1, 0)
        stage.close()
        await asyncio.sleep(0)
        assert first.cancelled() or not first.done()
        assert second.cancelled()

    run_virtual(main())
