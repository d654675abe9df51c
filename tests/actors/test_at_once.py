"""Messages that skip the mailbox, and those that leave from another thread."""

from __future__ import annotations

import asyncio

import pytest

from dvrt.actors.actor import Actor, Context
from dvrt.actors.cell import FAILED
from dvrt.errors import ProtocolError
from dvrt.wire import Message
from tests.actors.crew import Recorder, Text, seen_from, two_nodes, wait_until


class Prompt(Actor):
    """Takes at once what does not begin with "slow"; "bad" is an error."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str]] = []
        self.go_on = asyncio.Event()

    def take_at_once(self, message: Message, context: Context) -> bool:
        assert isinstance(message, Text)
        if message.text.startswith("slow"):
            return False
        if message.text == "bad":
            raise ProtocolError("bad")
        self.taken.append(("at once", message.text))
        return True

    async def receive(self, message: Message, context: Context) -> Message | None:
        assert isinstance(message, Text)
        if message.text.startswith("slow"):
            await self.go_on.wait()
        self.taken.append(("in turn", message.text))
        return None


@pytest.mark.parametrize("scheme", ["local", "tcp"])
async def test_only_an_idle_actor_takes_at_once_and_order_holds(scheme: str, loop_kind) -> None:
    async with two_nodes(scheme) as (here, there):
        actor = Prompt()
        target = seen_from(here, there.spawn(actor, name="prompt"))
        await target.ask(Text(text="hello"), deadline_s=5)
        await target.tell(Text(text="a"))
        await wait_until(lambda: len(actor.taken) == 2)
        for text in ("slow", "b", "c"):
            await target.tell(Text(text=text))
        await wait_until(lambda: there.statistics().counters.received >= 5)
        assert len(actor.taken) == 2
        actor.go_on.set()
        await wait_until(lambda: len(actor.taken) == 5)
        assert actor.taken[:2] == [("in turn", "hello"), ("at once", "a")]
        assert [text for _, text in actor.taken[2:]] == ["slow", "b", "c"]


async def test_an_error_at_once_ends_the_actor(loop_kind) -> None:
    async with two_nodes("local") as (here, there):
        target = seen_from(here, there.spawn(Prompt(), name="prompt"))
        await target.ask(Text(text="hello"), deadline_s=5)
        reasons: list[str] = []
        here.watch(target, lambda _, why: reasons.append(why))
        await target.tell(Text(text="bad"))
        await wait_until(lambda: reasons)
        assert reasons[0].startswith(FAILED) and "bad" in reasons[0]


async def test_a_thread_tells_over_a_link_that_is_idle(loop_kind) -> None:
    async with two_nodes("tcp") as (here, there):
        recorder = Recorder()
        target = seen_from(here, there.spawn(recorder, name="recorder"))
        assert not await asyncio.to_thread(target.try_tell, Text(text="no link yet"))
        await target.tell(Text(text="0"))
        await recorder.wait_for(1)
        assert await asyncio.to_thread(target.try_tell, Text(text="1"), b"region")
        await recorder.wait_for(2)
        assert recorder.texts == ["0", "1"]
        assert recorder.got[1][1].attachments == [b"region"]
        await wait_until(lambda: here.statistics().counters.sent >= 2)
        there.abort()
        await wait_until(lambda: not here.statistics().outboxes)
        assert not await asyncio.to_thread(target.try_tell, Text(text="2"))
