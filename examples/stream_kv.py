"""A KV cache moves to another process that keeps it in another layout.

The sender holds two pipeline stages in the paper's layout, the receiver one stage, token-major.
Both know both set-ups; layers arrive one by one, and a commit record proves the whole.

    python examples/stream_kv.py
"""

from __future__ import annotations

import asyncio
import multiprocessing
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection

from dvrt.cuda.device import open_device
from dvrt.kv.layout import Layout, Part
from dvrt.kv.plan import Side, Worker
from dvrt.kv.spans import Span, split_evenly
from dvrt.streaming import Cache, Kit, Setup, Setups, open_link, stream_in, stream_out
from dvrt.transport import Channel, connect, listen

SIZES = {"rows": 2, "heads": 12, "tokens": 256, "dim": 64, "item_bytes": 2, "dtype": "float16"}
SETUP = Setup(model="gpt2", n_layers=12, n_heads=12, dim=64, item_bytes=2, dtype="float16")
SETUPS = Setups(
    source=Side(layers=split_evenly(12, 2), heads=(Span.of(0, 12),), batches=((0, 1),)),
    target=Side(layers=split_evenly(12, 1), heads=(Span.of(0, 12),), batches=((1, 0),)),
    wire=Layout.token_major(layers=12, **SIZES),
)
PROMPT = Span.of(0, 200)
TARGET = Worker(0, 0)


async def send(address: str) -> None:
    """Both stages of the sender, each on a link of its own."""
    device = open_device("cpu")
    async with Kit(device) as kit, AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for me in SETUPS.source.workers:
            layout = Layout.paper(layers=6, **SIZES)
            cache = Cache(region=device.alloc(layout.nbytes), layout=layout)
            cache.region.view()[:] = bytes([65 + me.stage]) * layout.nbytes
            link = await open_link(await connect(address, deadline_s=10), kit, SETUP, deadline_s=10)
            links = {TARGET: await stack.enter_async_context(link)}
            group.create_task(
                stream_out(kit, "kv", SETUPS, me, [cache], links, PROMPT, deadline_s=10)
            )
    await device.aclose()


async def receive(parent: Connection) -> None:
    """Tell our address, take what comes, and show a byte of each layer's first value."""
    accepted, over = asyncio.Queue[Channel](), asyncio.Event()

    async def keep(channel: Channel) -> None:
        accepted.put_nowait(channel)
        await over.wait()

    device = open_device("cpu")
    async with Kit(device) as kit, AsyncExitStack() as stack:
        listener = await stack.enter_async_context(await listen("tcp://127.0.0.1:0", keep))
        stack.callback(over.set)
        parent.send(listener.address)
        links = {}
        for peer in SETUPS.source.workers:  # they connect in this order
            link = await open_link(await accepted.get(), kit, SETUP, deadline_s=10)
            links[peer] = await stack.enter_async_context(link)
        cache = Cache(region=device.alloc(SETUPS.wire.nbytes), layout=SETUPS.wire)
        boxes = stream_in(kit, "kv", SETUPS, TARGET, [cache], links, PROMPT, deadline_s=10)
        async for box in boxes:
            print(f"from stage {box.peer.stage}: layers {box.layers}, positions {box.tokens}")
        places = [SETUPS.wire.offset(Part.VALUE, layer=layer) for layer in range(12)]
        print("proved:", bytes(cache.region.view()[place] for place in places).decode())
    await device.aclose()


def receiver(parent: Connection) -> None:
    asyncio.run(receive(parent))


def main() -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=receiver, args=(theirs,))
    process.start()
    asyncio.run(send(ours.recv()))
    process.join()


if __name__ == "__main__":
    main()
