"""What a spare does ahead begins once, ends when a stage is loaded, and keeps nobody waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from dvrt.models.null_timing import NullTiming
from dvrt.models.spec import StageSpec
from dvrt.protocol.messages import LoadStage
from dvrt.stages.warmth import Warmth
from dvrt.virtual import run_virtual

ORDER = LoadStage(
    controller="local://c/controller",
    pipeline=0,
    stage=0,
    n_stages=3,
    spec=StageSpec(
        directory="model",
        first=0,
        stop=1,
        n_layers=3,
        dtype="float32",
        n_microbatches=1,
        batch_size=1,
        max_context=16,
    ),
    vocab_size=10,
    null_step_s=0.0,
)
NULL = replace(
    ORDER,
    spec=replace(ORDER.spec, device="null"),
    timing=NullTiming(decode_s=1.0, chunk_s=1.0, read_s=2.0),
)
LIMIT_S = 10.0


class Preparing:
    """Waits on its thread until it is told that it is over."""

    def __init__(self) -> None:
        self.begun: list[Sequence[LoadStage]] = []
        self.has_ended = threading.Event()

    def __call__(self, orders: Sequence[LoadStage], is_over: Callable[[], bool]) -> None:
        self.begun.append(orders)
        pause = threading.Event()
        while not is_over():
            pause.wait(0.001)
        self.has_ended.set()


@pytest.mark.parametrize("ends", ["wait", "close"])
def test_it_begins_once_and_is_told_of_the_end(ends: str) -> None:
    async def main() -> None:
        preparing = Preparing()
        warmth = Warmth(preparing)
        warmth.begin(())
        warmth.begin([ORDER])
        warmth.begin([ORDER, ORDER])
        assert not preparing.has_ended.wait(0.01)
        if ends == "wait":
            await warmth.wait(ORDER)
        else:
            warmth.close()
            warmth.close()
        assert await asyncio.to_thread(preparing.has_ended.wait, LIMIT_S)
        assert preparing.begun == [[ORDER]]

    asyncio.run(main())


def test_nothing_begins_once_a_stage_was_loaded() -> None:
    async def main() -> None:
        preparing = Preparing()
        warmth = Warmth(preparing)
        await warmth.wait(ORDER)
        warmth.begin([ORDER])
        await asyncio.sleep(0.01)
        assert preparing.begun == []

    asyncio.run(main())


@pytest.mark.parametrize(("head_start_s", "waited_s"), [(None, 2.0), (0.0, 6.0), (5.0, 1.0)])
def test_a_null_device_reads_all_stages_ahead(head_start_s: float | None, waited_s: float) -> None:
    """Two seconds a stage."""

    async def main() -> None:
        loop, warmth = asyncio.get_running_loop(), Warmth(Preparing())
        if head_start_s is not None:
            warmth.begin([NULL])
            await asyncio.sleep(head_start_s)
        began = loop.time()
        await warmth.wait(NULL)
        assert loop.time() - began == pytest.approx(waited_s)
        warmth.close()

    run_virtual(main())
