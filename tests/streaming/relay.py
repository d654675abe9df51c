"""A log that is streamed over links that break: both ends, and what mends them."""

import asyncio
import contextlib
import itertools

from dvrt.errors import ConnectFailed, DvrtError
from dvrt.kv.plan import Worker
from dvrt.kv.spans import Span
from dvrt.streaming import Behind, Grouping, Lineage, Setups, open_inflow, open_outflow
from dvrt.transport import get_transport, listen
from dvrt.transport.faults import RandomFaults
from dvrt.transport.faulty import FaultyTransport

ME = Worker(0, 0)
ADDRESSES = {"local": "local://lineage-{}", "tcp": "tcp://127.0.0.1:0", "shm": "shm://"}
STEPS = 40
FAULTS = DvrtError
names = itertools.count()


def token(step):
    return Span.of(step, step + 1)


class Pair:
    """A sender with faults on its channels, and a receiver that admits whoever connects."""

    def __init__(self, tools, kits, address, transport):
        self.here, self.there = kits
        self.lineage = Lineage(self.here, tools.SETUP)
        self.host = Lineage(self.there, tools.SETUP)
        self.links = asyncio.Queue()
        self.address, self.transport = address, transport
        self.channels = []
        self.dials = 0
        side = tools.one_sided()
        self.source = tools.caches(self.here.device, side, ME, "LCBHTD", tokens=STEPS)
        self.target = tools.caches(self.there.device, side, ME, "LCBTHD", tokens=STEPS)
        tools.fill(
            tools.array(self.source[0]), self.source[0].layout, side, ME, 0, Span.of(0, STEPS)
        )
        self.setups = Setups(source=side, target=side, wire=self.target[0].layout)

    async def admit(self, channel):
        with contextlib.suppress(FAULTS):
            link = await self.host.admit(channel, deadline_s=0.5)
            self.links.put_nowait(link)
            await link.wait_over()

    async def renew(self, lost=()):
        """One new link; a fault may hit the handshake itself, so a few tries."""
        for _ in range(20):
            self.dials += 1
            channel = await self.transport.connect(self.address, deadline_s=5)
            self.channels.append(channel)
            with contextlib.suppress(FAULTS):
                return {ME: await self.lineage.dial(channel, deadline_s=0.5)}
        raise ConnectFailed("nobody there")

    async def send(self, *, step_s=0.5):
        for _ in range(20):
            links = await self.renew()
            with contextlib.suppress(FAULTS):
                outflow = await self.open(links)
                break
        behind = Behind(outflow, limit=2, step_s=step_s, renew=self.renew)
        try:
            for step in range(STEPS):
                await behind.push(step, token(step))
            await behind.drain(deadline_s=30)
        finally:
            await behind.aclose()
            await outflow.cancel()
        return outflow

    async def open(self, links):
        return await open_outflow(
            self.here,
            "log",
            self.setups,
            ME,
            self.source,
            links,
            deadline_s=0.5,
            grouping=Grouping.WHOLE,
        )

    def expect(self, link):
        return open_inflow(self.there, "log", self.setups, ME, self.target, {ME: link})

    async def receive(self, *, step_s=0.5):
        inflow = None
        for step in range(STEPS):
            while True:
                with contextlib.suppress(FAULTS):
                    if inflow is None:
                        inflow = self.expect(await self.links.get())
                    elif inflow.lost:
                        await inflow.resume({ME: await self.links.get()})
                    boxes = inflow.take(step, token(step), deadline_s=step_s)
                    async with contextlib.aclosing(boxes):
                        async for _ in boxes:
                            pass
                    break
                if inflow is not None and not inflow.lost:
                    await inflow.cancel()
        return inflow


@contextlib.asynccontextmanager
async def pair(tools, scheme, rates=None, seed=0):
    """Both ends; every channel that is dialled meets faults drawn from the seed."""
    inner = get_transport(scheme)
    plan = RandomFaults(seed=seed, rates=rates or {}, bytes_below=4096)
    async with tools.kits() as kits:
        made = Pair(tools, kits, "", FaultyTransport(inner, plan))
        async with await listen(ADDRESSES[scheme].format(next(names)), made.admit) as listener:
            made.address = listener.address
            try:
                yield made
            finally:
                await asyncio.gather(made.lineage.aclose(), made.host.aclose())
                for channel in made.channels:
                    channel.abort()
                    await channel.quiet()
                while made.links.qsize():
                    await made.links.get_nowait().wait_over()
