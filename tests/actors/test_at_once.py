"""What an actor takes in the turn in which it comes never overtakes what came before it."""

from __future__ import annotations

import asyncio

from dvrt.actors.actor import Actor, Context
from dvrt.wire import Message
from tests.actors.crew import Pair, Text, seen_from, wait_until


class Eager(Actor):
    """Takes texts at once, but for those that it is slow to handle."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.at_once = 0
        self.go_on = asyncio.Event()

    def take_at_once(self, message: Message, context: Context) -> bool:
        assert isinstance(message, Text)
        if message.text.startswith("slow"):
            return False
        if message.text == "crash":
            raise RuntimeError("it cannot be taken")
        self.at_once += 1
        self.texts.append(message.text)
        return True

    async def receive(self, message: Message, context: Context) -> Message | None:
        assert isinstance(message, Text)
        if message.text.startswith("slow"):
            await self.go_on.wait()
        self.texts.append(message.text)
        return None


async def test_letters_behind_a_slow_one_wait_for_it(loop_kind: str) -> None:
    async with Pair("tcp") as (here, there):
        eager = Eager()
        target = seen_from(here, there.spawn(eager, name="eager"))
        for text in ("a", "slow b", "c", "d"):
            await target.tell(Text(text=text))
        await wait_until(lambda: len(there._cells["eager"]._mailbox) == 2)
        assert eager.texts == ["a"]
        eager.go_on.set()
        await wait_until(lambda: len(eager.texts) == 4)
        await target.tell(Text(text="e"))
        await wait_until(lambda: len(eager.texts) == 5)
        assert eager.texts == ["a", "slow b", "c", "d", "e"]
        assert eager.at_once >= 1


async def test_asks_are_handled_in_turn(loop_kind: str) -> None:
    async with Pair("tcp") as (here, there):
        eager = Eager()
        target = seen_from(here, there.spawn(eager, name="eager"))
        await target.ask(Text(text="a"), deadline_s=5)
        assert (eager.texts, eager.at_once) == (["a"], 0)


async def test_one_that_cannot_be_taken_ends_the_actor(loop_kind: str) -> None:
    async with Pair("tcp") as (here, there):
        target = seen_from(here, there.spawn(Eager(), name="eager"))
        reasons: list[str] = []
        here.watch(target, lambda _, reason: reasons.append(reason))
        await target.tell(Text(text="crash"))
        await wait_until(lambda: reasons)
        assert reasons == ["failed: RuntimeError: it cannot be taken"]
