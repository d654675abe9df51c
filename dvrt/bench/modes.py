"""``bench modes``: the four modes of streaming a token step, as the paper's ablation (Fig. 7).

Caches of three models in the paper's layout, as many layers as fit, to another process over TCP.
A step is a token of every row; its bytes are the same in all modes. The compute beside it is a
device that is busy for as long as the model's weights take to be read at a GPU's bandwidth.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from dvrt.bench.common import Measured, beside, spread
from dvrt.cuda.cpu_device import CpuDevice
from dvrt.kv.layout import Layout
from dvrt.kv.plan import Side, Worker
from dvrt.kv.spans import Span
from dvrt.planner.predict import streamed_step_s
from dvrt.streaming import (
    Behind,
    Cache,
    Grouping,
    Kit,
    Mode,
    Outflow,
    Setup,
    Setups,
    open_inflow,
    open_link,
    open_outflow,
)
from dvrt.transport import Channel, connect, listen

ROWS = 8
TOKENS = 2000
CACHE_BYTES = 1 << 30
ME = Worker(0, 0)
STEP_S = 600.0
PACKED_COPIES = 2
"""Of a step that is gathered: keys and values."""
GPU_BYTES_PER_S = 1.4e12
"""What a token step of these models is bound by: an A100-80's memory at 70 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's cache; ``n_layers`` of it are measured, ``all_layers`` it has."""

    name: str
    all_layers: int
    heads: int
    dim: int
    weight_bytes: float

    @property
    def n_layers(self) -> int:
        each = 2 * ROWS * self.heads * TOKENS * self.dim * 2
        return max(1, min(self.all_layers, CACHE_BYTES // each))

    @property
    def layout(self) -> Layout:
        return Layout.paper(
            layers=self.n_layers,
            rows=ROWS,
            heads=self.heads,
            tokens=TOKENS,
            dim=self.dim,
            item_bytes=2,
            dtype="float16",
        )

    @property
    def setups(self) -> Setups:
        side = Side(
            layers=(Span.of(0, self.n_layers),),
            heads=(Span.of(0, self.heads),),
            batches=(tuple(range(ROWS)),),
        )
        return Setups(source=side, target=side, wire=self.layout)

    @property
    def setup(self) -> Setup:
        return Setup(
            model=self.name,
            n_layers=self.n_layers,
            n_heads=self.heads,
            dim=self.dim,
            item_bytes=2,
            dtype="float16",
        )

    @property
    def naive_copies(self) -> int:
        """L·B·H·(Dh/x) + L·B·H, x = 8 float16 lanes."""
        return self.n_layers * ROWS * self.heads * (self.dim // 8 + 1)

    @property
    def compute_s(self) -> float:
        return self.weight_bytes * self.n_layers / self.all_layers / GPU_BYTES_PER_S


SHAPES = (
    Shape(name="gpt2", all_layers=48, heads=25, dim=64, weight_bytes=3e9),
    Shape(name="opt13b", all_layers=40, heads=40, dim=128, weight_bytes=26e9),
    Shape(name="opt66b", all_layers=64, heads=72, dim=128, weight_bytes=132e9),
)


def measure(*, quick: bool) -> Measured:
    """Seconds a step adds in each mode; ratios of medians, modes taking turns.

    Raises RuntimeError where a mode made another number of copies than the paper gives.
    """
    repeats = 1 if quick else 3
    results: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for shape in SHAPES:
        found = asyncio.run(_measure(shape, repeats=repeats, steps=4 if quick else 12))
        results[shape.name] = found
        step_s = {mode: found[mode.value]["step_s"]["median"] for mode in Mode}
        ratios[f"{shape.name}_buffered_vs_naive"] = step_s[Mode.NAIVE] / step_s[Mode.BUFFERED]
        ratios[f"{shape.name}_overlap_vs_buffered"] = (
            step_s[Mode.BUFFERED] / step_s[Mode.OVERLAPPED]
        )
    notes = [
        "naive: a copy and a message of its own for every run, as the paper's baseline does it",
        "step_s: a token step with its streaming, compute imitated by a device that sleeps",
        "overlapped_step_s: predicted as the longer of compute and the buffered mode's transfer",
        "all modes run the same step; layer by layer differs from buffered for prompts only",
    ]
    return Measured(results=results, ratios=ratios, notes=notes)


async def _measure(shape: Shape, *, repeats: int, steps: int) -> dict[str, Any]:
    taken: dict[Mode, list[float]] = {mode: [] for mode in Mode}
    copies: dict[Mode, float] = {}
    async with _peer(shape) as (kit, cache, channel):
        link = await open_link(channel, kit, shape.setup, deadline_s=30)
        async with link:
            for repeat in range(-1, repeats):  # the first is not counted
                for mode in Mode:
                    n_steps = 1 if mode is Mode.NAIVE else steps
                    before = kit.counters.copies_out
                    outflow = await open_outflow(
                        kit,
                        f"{repeat} {mode.value} {n_steps}",
                        shape.setups,
                        ME,
                        [cache],
                        {ME: link},
                        deadline_s=30,
                        mode=mode,
                        grouping=Grouping.WHOLE,
                    )
                    step_s = await _steps(kit, outflow, shape, mode, n_steps)
                    outflow.close()
                    if repeat >= 0:
                        taken[mode].append(step_s)
                    copies[mode] = (kit.counters.copies_out - before) / n_steps
    ensure_copies(shape, copies)
    return {
        "layers": shape.n_layers,
        "layers_of_model": shape.all_layers,
        "compute_s": shape.compute_s,
        "naive_copies_expected": shape.naive_copies,
        "naive_us_a_copy": statistics.median(taken[Mode.NAIVE]) / shape.naive_copies * 1e6,
        "step_bytes": ROWS * shape.layout.entry_bytes,
        "overlapped_step_s": _beside(shape, taken),
        **{
            mode.value: {"step_s": spread(taken[mode]), "copies_a_step": copies[mode]}
            for mode in Mode
        },
    }


def ensure_copies(shape: Shape, copies: Mapping[Mode, float]) -> None:
    """Raise RuntimeError naming the first mode whose copies a step are not the paper's number."""
    for mode, measured in copies.items():
        expected = shape.naive_copies if mode is Mode.NAIVE else PACKED_COPIES
        if measured != expected:
            raise RuntimeError(
                f"{shape.name}, {mode.value}: {measured:g} copies a step, expected {expected}"
            )


def _beside(shape: Shape, taken: Mapping[Mode, list[float]]) -> dict[str, float]:
    """An overlapped step as predicted from what the buffered one takes beside its compute."""
    buffered_s, overlapped_s = (
        statistics.median(taken[mode]) for mode in (Mode.BUFFERED, Mode.OVERLAPPED)
    )
    transfer_s = max(0.0, buffered_s - shape.compute_s)
    return beside(streamed_step_s(shape.compute_s, transfer_s, overlaps=True), overlapped_s)


async def _steps(kit: Kit, outflow: Outflow, shape: Shape, mode: Mode, n_steps: int) -> float:
    """Mean seconds of a step: compute, and as much of the streaming as the mode does not hide."""
    behind = Behind(outflow, limit=2, step_s=STEP_S) if mode is Mode.OVERLAPPED else None
    began = time.monotonic()
    for step in range(n_steps):
        await kit.device.run(lambda: time.sleep(shape.compute_s))
        tokens = Span.of(step, step + 1)
        if behind is None:
            await outflow.ship(step, tokens, deadline_s=STEP_S)
        else:
            await behind.push(step, tokens)
    if behind is not None:
        await behind.drain(deadline_s=STEP_S)
        await behind.aclose()
    return (time.monotonic() - began) / n_steps


@asynccontextmanager
async def _peer(shape: Shape) -> AsyncIterator[tuple[Kit, Cache, Channel]]:
    """A kit and a filled cache of ours, and a channel to a process that takes every step."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_receiver, args=(theirs, shape), daemon=True)
    await asyncio.to_thread(process.start)
    device = CpuDevice()
    try:
        address = await asyncio.to_thread(ours.recv)
        async with Kit(device) as kit:
            yield kit, _filled(device, shape.layout, 1), await connect(address, deadline_s=30)
    finally:
        await device.aclose()
        await asyncio.to_thread(process.join, 30)


def _filled(device: CpuDevice, layout: Layout, byte: int) -> Cache:
    """A cache whose pages are all there: the first touch is not what is measured."""
    cache = Cache(region=device.alloc(layout.nbytes), layout=layout)
    cache.region.view()[:] = bytes([byte]) * layout.nbytes
    return cache


def _receiver(parent: Connection, shape: Shape) -> None:
    asyncio.run(_take_all(parent, shape))


async def _take_all(parent: Connection, shape: Shape) -> None:
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    over = asyncio.Event()

    async def keep(channel: Channel) -> None:
        accepted.put_nowait(channel)
        await over.wait()

    device = CpuDevice()
    async with Kit(device) as kit, await listen("tcp://127.0.0.1:0", keep) as listener:
        cache = _filled(device, shape.layout, 0)
        parent.send(listener.address)
        link = await open_link(await accepted.get(), kit, shape.setup, deadline_s=30)
        while (offer := await link.next_offer()) is not None:
            n_steps = int(offer.stream.split()[-1])
            inflow = open_inflow(kit, offer.stream, shape.setups, ME, [cache], {ME: link})
            for step in range(n_steps):
                async for _ in inflow.take(step, Span.of(step, step + 1), deadline_s=STEP_S):
                    pass
            inflow.close()
        await link.aclose()
        over.set()
    await device.aclose()
