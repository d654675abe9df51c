"""Two ends of links in one process, and caches with known bytes, for the tests of streaming."""

import asyncio
import contextlib
import itertools

import numpy as np
import pytest

from dvrt.cuda.cpu_device import CpuDevice
from dvrt.kv.layout import Layout, Part
from dvrt.kv.plan import Side, Worker
from dvrt.kv.spans import Span
from dvrt.streaming import Cache, Kit, Setup, open_link
from dvrt.transport import connect, listen

names = itertools.count()

ADDRESSES = {
    "local": "local://streaming-{}",
    "tcp": "tcp://127.0.0.1:0",
    "shm": "shm://",
    "ucx": "ucx://127.0.0.1:0",
}


class Tools:
    """What the tests of this folder share."""

    SETUP = Setup(model="test", n_layers=4, n_heads=2, dim=4, item_bytes=4)

    @staticmethod
    @contextlib.asynccontextmanager
    async def channels(scheme, n=1):
        """``n`` pairs of channels; the first of each connected, the second accepted."""
        accepted = asyncio.Queue()
        over = asyncio.Event()

        async def handler(channel):
            accepted.put_nowait(channel)
            await over.wait()

        address = ADDRESSES[scheme].format(next(names))
        pairs = []
        async with await listen(address, handler) as listener:
            try:
                for _ in range(n):
                    channel = await connect(listener.address, deadline_s=5)
                    pairs.append((channel, await accepted.get()))
                yield pairs
            finally:
                for channel in itertools.chain(*pairs):
                    channel.abort()
                    await channel.quiet()
                over.set()

    @staticmethod
    @contextlib.asynccontextmanager
    async def kits(n=2, **options):
        devices = [CpuDevice(name=f"cpu{i}") for i in range(n)]
        made = [Kit(device, **options) for device in devices]
        try:
            yield made
            for kit in made:
                for pool in (kit.staging, kit.landing):
                    statistics = pool.statistics()
                    assert statistics.leased_bytes == 0, pool
                    assert statistics.quarantined_bytes == 0, pool
        finally:
            for kit in made:
                await kit.aclose()
            for device in devices:
                await device.aclose()

    @staticmethod
    @contextlib.asynccontextmanager
    async def linked(scheme="local", setup=None, kit_options=None, **options):
        """Two kits and one link between them: (kit, link) of each end."""
        setup = setup or Tools.SETUP
        async with Tools.kits(**(kit_options or {})) as (here, there):
            async with Tools.channels(scheme) as [(a, b)]:
                one, other = await asyncio.gather(
                    open_link(a, here, setup, deadline_s=5, **options),
                    open_link(b, there, setup, deadline_s=5, **options),
                )
                try:
                    yield (here, one), (there, other)
                finally:
                    await asyncio.gather(one.aclose(), other.aclose())

    @staticmethod
    def layout_of(side, worker, batch, order, *, tokens, dim=4, item_bytes=4, **options):
        value_order = options.pop("value_order", "")
        return Layout(
            order=order,
            value_order=value_order,
            layers=side.layers[worker.stage].size,
            rows=len(side.batches[batch]),
            heads=side.heads[worker.rank].size,
            tokens=tokens,
            dim=dim,
            item_bytes=item_bytes,
            lanes=2,
            block_tokens=2,
            **options,
        )

    @staticmethod
    def caches(device, side, worker, order, *, tokens, **options):
        found = []
        for batch in range(len(side.batches)):
            layout = Tools.layout_of(side, worker, batch, order, tokens=tokens, **options)
            cache = Cache(region=device.alloc(layout.nbytes), layout=layout)
            Tools.array(cache)[:] = -1
            found.append(cache)
        return found

    @staticmethod
    def array(cache):
        return np.frombuffer(cache.region.view(), np.int32)

    @staticmethod
    def fill(array, layout, side, worker, batch, tokens):
        """Each element's number says globally which element it is."""
        layers, heads = side.layers[worker.stage], side.heads[worker.rank]
        for part in Part:
            by_axis = layout.strides(part).by_axis
            d = np.arange(layout.dim)
            lane = d // 2 * by_axis["D"] + d % 2 * by_axis["X"] if "X" in by_axis else None
            within = (
                np.arange(layers.size)[:, None, None] * by_axis["L"]
                + np.arange(heads.size)[None, :, None] * by_axis["H"]
                + (d * by_axis["D"] if lane is None else lane)
            )
            place = np.ix_(
                np.arange(layers.start, layers.stop), np.arange(heads.start, heads.stop), d
            )
            for row, request in enumerate(side.batches[batch]):
                if request is None:
                    continue
                span = tokens if isinstance(tokens, Span) else tokens.get(request, Span.of(0, 0))
                for token in range(span.start, span.stop):
                    name = (part, place[0], request, place[1], token, place[2])
                    offsets = layout.offset(part, row=row, token=token) + within
                    array[offsets // 4] = np.ravel_multi_index(
                        name, (2, 20, 20, 8, 128, layout.dim)
                    )

    @staticmethod
    def ensure_filled(cache, side, worker, batch, tokens):
        expected = np.full(cache.layout.nbytes // 4, -1, np.int32)
        Tools.fill(expected, cache.layout, side, worker, batch, tokens)
        assert np.array_equal(Tools.array(cache), expected)

    @staticmethod
    def one_sided(n_layers=4, n_heads=2, requests=(0, 1, 2)):
        return Side(
            layers=(Span.of(0, n_layers),),
            heads=(Span.of(0, n_heads),),
            batches=(tuple(requests),),
        )

    ONE = Worker(0, 0)


@pytest.fixture
def tools():
    return Tools
