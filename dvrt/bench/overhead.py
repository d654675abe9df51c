"""``bench overhead``: what it costs to stream every new KV entry away while a model generates.

A GPT-2-124M shape with random weights generates for 8 rows on one compute thread. Three sides take
turns, block by block: nothing is streamed; every step's entries go to another process, behind the
compute, over what ``auto`` picks; the same to a file, durable step by step. All of it on two cores.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvrt.bench.common import Measured, beside, spread
from dvrt.bench.overhead_peer import ME, STEP_S, Peer, Shape, open_peer
from dvrt.buffers import Region
from dvrt.cuda.cpu_device import CpuDevice
from dvrt.errors import Corrupted
from dvrt.kv.regions import Box
from dvrt.kv.spans import Span
from dvrt.processes.worker_process import loop_factory
from dvrt.streaming import (
    Behind,
    Cache,
    Grouping,
    Kit,
    Link,
    Mode,
    open_link,
    open_outflow,
    scatter,
)
from dvrt.transport import Channel, connect
from dvrt.transport.file import FileChannel, FileTransport

if TYPE_CHECKING:
    from dvrt.models.runner import StageRunner

MODEL: Mapping[str, Any] = {
    "n_layers": 12,
    "hidden_size": 768,
    "n_heads": 12,
    "vocab_size": 50257,
    "max_positions": 1024,
}
ROWS = 8
PROMPT_TOKENS = 64
BLOCK_STEPS = 5
"""The first is not timed: what it leaves to be streamed is what the second computes beside."""
REPEATS, QUICK_REPEATS = 200, 16
UNPROVED_STEPS = 2
SIDES = ("none", "stream", "file")

Push = Callable[[int], Awaitable[None]]
"""Given the number of a step whose entries are there; returns when the next may begin."""


def measure(*, quick: bool) -> Measured:
    """Milliseconds of a token step on each side, in short blocks that take turns.

    A ratio is the median over rounds of one side's block to the plain block of the same round.
    """
    with _two_cores() as cores, tempfile.TemporaryDirectory() as scratch:
        with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
            found = runner.run(_measure(Path(scratch), repeats=QUICK_REPEATS if quick else REPEATS))
    taken, facts = found
    return Measured(
        results={
            "cores": cores,
            **facts,
            **{s: {"step_ms": spread(taken[s])} for s in SIDES},
            "slowdowns": {side: beside(1.0, slowdown(taken, side)) for side in SIDES[1:]},
        },
        ratios={f"{side}_slowdown": slowdown(taken, side) for side in SIDES[1:]},
        notes=[
            f"a block is {BLOCK_STEPS} steps of {ROWS} rows; timed from the end of its first step",
            "a ratio is the median of those of neighbouring blocks, not the ratio of the medians",
            "predicted: 1, since a step's entries take a link far less long than the step; what "
            "streaming takes of the two cores is not predicted",
            "stream: digests on, at most two steps unproved; the receiver shares the two cores",
            "file: every step is flushed to the disk, and waited for two steps later",
        ],
    )


def slowdown(taken: Mapping[str, Sequence[float]], side: str) -> float:
    """How much longer a step takes than without streaming, by neighbouring blocks."""
    return statistics.median(
        with_it / without for with_it, without in zip(taken[side], taken["none"], strict=True)
    )


@contextmanager
def _two_cores() -> Iterator[int]:
    """This thread, and the threads and processes begun meanwhile, keep to two usable cores."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)[-2:]
    os.sched_setaffinity(0, cores)
    try:
        yield len(cores)
    finally:
        os.sched_setaffinity(0, before)


async def _measure(scratch: Path, *, repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    async with AsyncExitStack() as stack:
        device = CpuDevice()
        stack.push_async_callback(device.aclose)
        generation = await Generation.begin(device, scratch / "model")
        kit = await stack.enter_async_context(Kit(device))
        log = await stack.enter_async_context(_log(scratch / "log"))
        peer, channel = await stack.enter_async_context(_peer(generation.shape))
        link = await open_link(channel, kit, generation.shape.setup, deadline_s=STEP_S)
        sides = {
            "none": generation.run,
            "stream": lambda: _streamed(kit, generation, link),
            "file": lambda: _filed(kit, generation, log),
        }
        taken = await _take_turns(sides, repeats)
        await link.aclose()
        theirs = await asyncio.to_thread(peer.digest)
        ours = await asyncio.to_thread(generation.shape.digest, generation.cache)
        if ours != theirs:
            raise Corrupted("what was streamed", expected=ours, got=theirs)
        return taken, {
            "by": channel.peer,
            "step_bytes": ROWS * generation.cache.layout.entry_bytes,
            "durable_bytes": log.durable_bytes,
        }


class Generation:
    """One stage with all layers; every block generates the same positions with the same tokens."""

    def __init__(self, device: CpuDevice, runner: StageRunner) -> None:
        layout = runner.arena.layout
        self.cache = Cache(region=Region.of(runner.arena.storage), layout=layout)
        tokens = Span.of(PROMPT_TOKENS, PROMPT_TOKENS + BLOCK_STEPS)
        self.shape = Shape(layout=layout, rows=ROWS, tokens=tokens)
        self._device, self._runner = device, runner

    @classmethod
    async def begin(cls, device: CpuDevice, directory: Path) -> Generation:
        """Write the model, load it on the compute thread, and compute a prompt for each row."""
        runner = await device.run(lambda: _load(directory))
        return cls(device, runner)

    async def run(self, push: Push | None = None) -> float:
        """Generate one block; milliseconds of a step, once the first is computed."""
        token_ids = list(range(ROWS))
        began = ended = 0.0
        for step in range(BLOCK_STEPS):
            token_ids = await self._device.run(
                lambda step=step, known=token_ids: self._step(step, known)  # type: ignore[misc]
            )
            ended = time.perf_counter()
            began = began or ended
            if push is not None:
                await push(step)
        return (ended - began) * 1e3 / (BLOCK_STEPS - 1)

    def _step(self, step: int, token_ids: list[int]) -> list[int]:
        places = [PROMPT_TOKENS + step] * ROWS
        hidden = self._runner.decode(0, places, token_ids)
        logits = self._runner.decode_logits(hidden, range(ROWS))
        return [int(token) for token in logits.argmax(axis=1)]


def _load(directory: Path) -> StageRunner:
    from dvrt.models.runner import StageRunner
    from dvrt.models.spec import StageSpec
    from dvrt.models.tiny import write_tiny

    write_tiny(directory, "gpt2", **MODEL)
    runner = StageRunner(
        StageSpec(
            directory=str(directory),
            first=0,
            stop=MODEL["n_layers"],
            n_layers=MODEL["n_layers"],
            dtype="float32",
            n_microbatches=1,
            batch_size=ROWS,
            max_context=256,
        )
    )
    for slot in range(ROWS):
        runner.chunk(slot, 0, PROMPT_TOKENS, [slot + i for i in range(PROMPT_TOKENS)])
    return runner


async def _take_turns(
    sides: Mapping[str, Callable[[], Awaitable[float]]], repeats: int
) -> dict[str, list[float]]:
    """Milliseconds a step; each round begins with another side, the first is not counted."""
    taken: dict[str, list[float]] = {side: [] for side in sides}
    names = list(sides)
    for number in range(-1, repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            step_ms = await sides[name]()
            if number >= 0:
                taken[name].append(step_ms)
    return taken


async def _streamed(kit: Kit, generation: Generation, link: Link) -> float:
    """One block, each step's entries on their way behind the compute of the next."""
    shape = generation.shape
    outflow = await open_outflow(
        kit,
        "block",
        shape.setups,
        ME,
        [generation.cache],
        {ME: link},
        deadline_s=STEP_S,
        mode=Mode.OVERLAPPED,
        grouping=Grouping.WHOLE,
    )
    behind = Behind(outflow, limit=UNPROVED_STEPS, step_s=STEP_S)
    step_ms = await generation.run(lambda step: behind.push(step, shape.token(step)))
    await behind.drain(deadline_s=STEP_S)
    await behind.aclose()
    outflow.close()
    return step_ms


async def _filed(kit: Kit, generation: Generation, log: FileChannel) -> float:
    """One block, each step's entries appended and flushed behind the compute of the next."""
    shape = generation.shape
    steps: asyncio.Queue[int] = asyncio.Queue(UNPROVED_STEPS)

    async def write() -> None:
        for _ in range(BLOCK_STEPS):
            box = Box(
                layers=Span.of(0, shape.layout.layers),
                rows=tuple(range(ROWS)),
                heads=Span.of(0, shape.layout.heads),
                tokens=shape.token(await steps.get()),
            )
            await scatter(kit, generation.cache, box, log, deadline_s=STEP_S)
            await log.flush(deadline_s=STEP_S)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        step_ms = await generation.run(steps.put)
    return step_ms


@asynccontextmanager
async def _log(path: Path) -> AsyncIterator[FileChannel]:
    channel = await FileTransport().connect(f"file://{path}", deadline_s=STEP_S)
    async with channel:
        yield channel


@asynccontextmanager
async def _peer(shape: Shape) -> AsyncIterator[tuple[Peer, Channel]]:
    """The receiving process and a channel to it."""
    opening = open_peer(shape)
    peer = await asyncio.to_thread(opening.__enter__)
    try:
        channel = await connect(peer.address, deadline_s=STEP_S)
        try:
            yield peer, channel
        finally:
            channel.abort()
            await channel.quiet()
    finally:
        await asyncio.to_thread(opening.__exit__, None, None, None)
