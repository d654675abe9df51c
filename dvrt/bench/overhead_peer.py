"""The receiving process of ``bench overhead``: a second copy of the log, step by step."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import xxhash

from dvrt.cuda.cpu_device import CpuDevice
from dvrt.kv.layout import Layout, Part
from dvrt.kv.plan import Side, Worker
from dvrt.kv.spans import Span
from dvrt.processes.worker_process import loop_factory
from dvrt.streaming import Cache, Kit, Setup, Setups, open_inflow, open_link
from dvrt.transport import Channel, listen

ME = Worker(0, 0)
STEP_S = 60.0
END_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What both processes know: one worker on each side, the same layout, ``rows`` requests.

    A stream is one block: the positions ``tokens``, a step each.
    """

    layout: Layout
    rows: int
    tokens: Span

    @property
    def setups(self) -> Setups:
        side = Side(
            layers=(Span.of(0, self.layout.layers),),
            heads=(Span.of(0, self.layout.heads),),
            batches=(tuple(range(self.rows)),),
        )
        return Setups(source=side, target=side, wire=self.layout)

    @property
    def setup(self) -> Setup:
        return Setup(
            model="overhead",
            n_layers=self.layout.layers,
            n_heads=self.layout.heads,
            dim=self.layout.dim,
            item_bytes=self.layout.item_bytes,
        )

    def token(self, step: int) -> Span:
        return Span.of(self.tokens.start + step, self.tokens.start + step + 1)

    def digest(self, cache: Cache) -> int:
        """Of the entries of one block, wherever they lie."""
        digest = xxhash.xxh3_64()
        view, layout = cache.region.view(), self.layout
        run_bytes = layout.dim * layout.item_bytes
        for part in (Part.KEY, Part.VALUE):
            by_axis = layout.strides(part).by_axis
            for row in range(self.rows):
                for token in range(self.tokens.start, self.tokens.stop):
                    place = layout.offset(part, row=row, token=token)
                    for layer in range(layout.layers):
                        for head in range(layout.heads):
                            at = place + layer * by_axis["L"] + head * by_axis["H"]
                            digest.update(view[at : at + run_bytes])
        return digest.intdigest()


@dataclass(frozen=True, slots=True)
class Peer:
    """The process: where it listens, and, once the link has ended, what it has."""

    address: str
    told: IO[bytes]

    def digest(self) -> int:
        """Blocks until the process has said it."""
        return int(self.told.readline() or -1)


@contextmanager
def open_peer(shape: Shape) -> Iterator[Peer]:
    """Start the process; it ends when the link to it does. Blocks: call it in a thread."""
    known = asdict(shape.layout) | {"first": shape.tokens.start, "stop": shape.tokens.stop}
    process = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, json.dumps(known), str(shape.rows)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with process:
        try:
            told = process.stdout
            assert told is not None
            address = told.readline().decode().strip()
            if not address:
                raise RuntimeError("the receiving process did not start")
            yield Peer(address, told)
        finally:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            process.kill()


def main() -> None:
    """The receiving process."""
    known, rows = json.loads(sys.argv[1]), int(sys.argv[2])
    tokens = Span.of(known.pop("first"), known.pop("stop"))
    shape = Shape(layout=Layout(**known), rows=rows, tokens=tokens)
    with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
        runner.run(_receive(shape))


def _tell(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


async def _receive(shape: Shape) -> None:
    accepted: asyncio.Queue[Channel] = asyncio.Queue()
    over = asyncio.Event()

    async def keep(channel: Channel) -> None:
        accepted.put_nowait(channel)
        await over.wait()

    device = CpuDevice()
    async with Kit(device) as kit, await listen("auto://127.0.0.1:0", keep) as listener:
        cache = Cache(region=device.alloc(shape.layout.nbytes), layout=shape.layout)
        cache.region.view()[:] = bytes(shape.layout.nbytes)
        _tell(listener.address)
        link = await open_link(await accepted.get(), kit, shape.setup, deadline_s=END_S)
        while (offer := await link.next_offer()) is not None:
            inflow = open_inflow(kit, offer.stream, shape.setups, ME, [cache], {ME: link})
            for step in range(shape.tokens.size):
                async for _ in inflow.take(step, shape.token(step), deadline_s=STEP_S):
                    pass
            inflow.close()
        await link.aclose()
        over.set()
    _tell(shape.digest(cache))
    await device.aclose()


if __name__ == "__main__":
    main()
