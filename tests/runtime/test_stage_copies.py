"""Copies of logs: what a stage sends to replica actors, what they keep, and what comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dvrt.control.steps import Adopt, Decode
from dvrt.kv.copied import PAUSE_S
from dvrt.kv.digest import digest_of
from dvrt.models.tiny import write_tiny
from dvrt.protocol.claims import Survey
from dvrt.protocol.messages import (
    Arrived,
    DropReplicas,
    Entries,
    LogRange,
    ReplicaGap,
    ReplicaSent,
    Replicate,
    Replicated,
    SendReplica,
)
from dvrt.stages.replicas import ReplicaActor
from dvrt.virtual import run_virtual
from tests.runtime.stage_crew import GREEDY, Line, Works, works

PROMPT = [(7 * i) % 90 for i in range(21)]
N = len(PROMPT)
SLOT = 1


async def copied(shop: Works, line: Line, stage: int = 0) -> None:
    """The holder has everything up to the latest step."""
    await shop.desk.wait_for(
        Replicated,
        lambda e: (e.pipeline, e.stage, e.step, e.refused) == (line.id, stage, shop.step_id, 0),
    )


async def bring_back(
    shop: Works, line: Line, holder: str, logs: dict[int, tuple[int, int]]
) -> dict[int, int]:
    """Have logs (slot -> seq, length) sent to stage 0 of a line; slot -> what arrived."""
    ticket = {slot: shop.next_epoch() for slot in logs}
    order = SendReplica(
        pipeline=line.id,
        stage=0,
        to=line.stages[0].actor,
        ranges=tuple(
            LogRange(slot=slot, seq=seq, epoch=ticket[slot], start=0, stop=length)
            for slot, (seq, length) in logs.items()
        ),
    )
    sent = await shop.node.ref(holder).ask(order, deadline_s=10)
    assert isinstance(sent, ReplicaSent)
    out = {}
    for each in sent.ranges:
        news = await shop.desk.wait_for(Arrived, lambda e, epoch=each.epoch: e.epoch == epoch)
        assert news.reason == ""
        out[each.slot] = news.length
    return out


async def killed_and_restored(n_more: int = 6, **model: Any) -> None:
    """Stage 0 of 2 dies; its replacement gets its log back from the worker of stage 1."""
    async with works(**model) as shop:
        line = await shop.line(0, 2)
        holder = shop.joined["w0-1"].replica_actor
        await shop.connect(line, replicas={0: (holder,)})
        epoch, first = await shop.prompt(line, SLOT, 5, PROMPT)
        out = [first, *await shop.decode(line, SLOT, 5, epoch, N, first, 3)]
        await copied(shop, line)
        if "model" not in model:
            shop.workers["w0-0"].kill()
        stage = await shop.load("new", 0, 0, 2, line.cuts[0])
        line = Line(0, (stage, line.stages[1]), line.cuts, ("new", "w0-1"))
        await shop.connect(line, replicas={0: (holder,)})
        assert await bring_back(shop, line, holder, {SLOT: (5, N + 3)}) == {SLOT: N + 3}
        out += await shop.adopt(line, SLOT, 5, N + 3, out[-1], n_more)
        await copied(shop, line)
        single = await shop.line(9, 1)
        await shop.connect(single)
        epoch, first = await shop.prompt(single, 0, 1, PROMPT)
        right = [first, *await shop.decode(single, 0, 1, epoch, N, first, 3 + n_more)]
        assert out == right


@pytest.mark.parametrize("seed", range(5))
def test_a_log_comes_back_from_its_copy(seed: int) -> None:
    run_virtual(killed_and_restored(), seed=seed)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies") / request.param
    return write_tiny(folder, request.param, n_layers=5, vocab_size=97, max_positions=128)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_a_real_log_comes_back(checkpoint: Path, dtype: str) -> None:
    await killed_and_restored(model=checkpoint, dtype=dtype)


def test_a_new_holder_gets_everything() -> None:
    async def main() -> None:
        async with works() as shop:
            line = await shop.line(0, 1)
            await shop.connect(line)
            for slot in range(4):
                await shop.prompt(line, slot, slot, PROMPT[: 10 + slot])
            joined = await shop.worker("holder")
            await shop.connect(line, replicas={0: (joined.replica_actor,)})
            await shop.desk.wait_for(Replicated, lambda e: e.holder == joined.replica_actor)
            wish = {slot: (slot, 99) for slot in range(4)}
            twin = Line(0, (await shop.load("twin", 0, 0, 1, (0, 5)),), line.cuts, ("twin",))
            back = await bring_back(shop, twin, joined.replica_actor, wish)
            assert back == {slot: 10 + slot for slot in range(4)}

    run_virtual(main())


def test_steps_that_follow_each_other_closely_share_copies() -> None:
    async def main() -> None:
        async with works() as shop:
            line = await shop.line(0, 1)
            await shop.worker("keeper")
            await shop.connect(line, replicas={0: (shop.joined["keeper"].replica_actor,)})
            epoch, token = await shop.prompt(line, SLOT, 5, PROMPT)
            began, before = asyncio.get_running_loop().time(), len(shop.desk.all(Replicated))
            for i in range(40):
                (token,) = await shop.decode(line, SLOT, 5, epoch, N + i, token, 1)
                await asyncio.sleep(0.005)
            await copied(shop, line)
            passed_s = asyncio.get_running_loop().time() - began
            assert len(shop.desk.all(Replicated)) - before <= 2 + passed_s / PAUSE_S

    run_virtual(main())


def test_a_holder_that_dies_hurts_nobody_and_two_hold_the_same() -> None:
    async def main() -> None:
        async with works() as shop:
            line = await shop.line(0, 1)
            a, b = await shop.worker("a"), await shop.worker("b")
            await shop.connect(line, replicas={0: (a.replica_actor, b.replica_actor)})
            epoch, first = await shop.prompt(line, SLOT, 5, PROMPT)
            shop.workers["a"].kill()
            out = await shop.decode(line, SLOT, 5, epoch, N, first, 5)
            await shop.desk.wait_for(
                Replicated, lambda e: (e.holder, e.step) == (b.replica_actor, shop.step_id)
            )
            c = await shop.worker("c")
            await shop.connect(line, replicas={0: (b.replica_actor, c.replica_actor)})
            await shop.decode(line, SLOT, 5, epoch, N + 5, out[-1], 1)
            await shop.desk.wait_for(
                Replicated, lambda e: (e.holder, e.step) == (c.replica_actor, shop.step_id)
            )
            twin = Line(0, (await shop.load("twin", 0, 0, 1, (0, 5)),), line.cuts, ("twin",))
            for holder in (b, c):
                back = await bring_back(shop, twin, holder.replica_actor, {SLOT: (5, 99)})
                assert back == {SLOT: N + 6}

    run_virtual(main())


def test_a_log_that_was_rolled_back_is_copied_from_there() -> None:
    """Twice between two copies: what the second keeps of the first must be the second's."""

    async def main() -> None:
        async with works() as shop:
            line = await shop.line(0, 1)
            holder = (await shop.worker("holder")).replica_actor
            await shop.connect(line, replicas={0: (holder,)})
            epoch, first = await shop.prompt(line, SLOT, 5, PROMPT)
            await shop.decode(line, SLOT, 5, epoch, N, first, 5)
            await copied(shop, line)
            for start, token in ((N + 1, 50), (N + 2, 60), (N + 4, 70)):
                newer = shop.next_epoch()
                adopt = Adopt(
                    slot=SLOT, seq=5, epoch=newer, n_tokens=start, sample=0, sampling=GREEDY
                )
                begins: tuple[Adopt, ...] = (adopt,)
                for position in range(start, start + 3):
                    item = Decode(
                        slot=SLOT, seq=5, epoch=newer, position=position, token=token + position
                    )
                    await shop.send(line, adopts=begins, decodes=(item,))
                    begins = ()
            right = (await shop.run(line)).decoded
            await copied(shop, line)
            twin = Line(0, (await shop.load("twin", 0, 0, 1, (0, 5)),), line.cuts, ("twin",))
            await shop.connect(twin)
            assert await bring_back(shop, twin, holder, {SLOT: (5, 99)}) == {SLOT: N + 7}
            ours = await shop.decode(line, SLOT, 5, newer, N + 7, 1, 3)
            assert await shop.adopt(twin, SLOT, 5, N + 7, 1, 3) == ours
            assert right == ()

    run_virtual(main())


class Keeper:
    """A replica actor on its own, fed by hand; the desk is controller, stage and target."""

    def __init__(self, shop: Works, actor: ReplicaActor) -> None:
        self.shop, self.actor = shop, actor
        self.ref = shop.node.spawn(actor, name="keeper")

    async def store(
        self, *ranges: tuple[int, int, int, int, int], entry: int = 8, **changes: Any
    ) -> None:
        """Ranges (slot, seq, epoch, start, stop); the bytes of an entry name its position."""
        data = b"".join(
            bytes([(slot * 50 + seq + p) % 256]) * entry
            for slot, seq, _, start, stop in ranges
            for p in range(start, stop)
        )
        names = ("slot", "seq", "epoch", "start", "stop")
        self.shop.step_id += 1
        fields: dict[str, Any] = {
            "pipeline": 3,
            "stage": 1,
            "origin": str(self.shop.me),
            "first": 2,
            "last": 4,
            "step": self.shop.step_id,
            "ranges": tuple(LogRange(**dict(zip(names, each, strict=True))) for each in ranges),
            "digest": digest_of([data]),
            **changes,
        }
        await self.ref.tell(Replicate(**fields), data)

    async def stored(self) -> Replicated:
        return await self.shop.desk.wait_for(Replicated, lambda e: e.step == self.shop.step_id)

    async def send(self, slot: int, seq: int, length: int) -> tuple[int, bytes]:
        """What is held of a log: its length and its bytes as they are sent."""
        before = len(self.shop.desk.got)
        order = SendReplica(
            pipeline=3,
            stage=1,
            to=str(self.shop.me),
            ranges=(LogRange(slot=slot, seq=seq, epoch=99, start=0, stop=length),),
        )
        sent = await self.ref.ask(order, deadline_s=5)
        await asyncio.sleep(0.1)
        assert isinstance(sent, ReplicaSent)
        data = b""
        for message, regions in zip(
            self.shop.desk.got[before:], self.shop.desk.regions[before:], strict=True
        ):
            if isinstance(message, Entries):
                assert message.digest == digest_of(regions)
                data += regions[0]
        return (sent.ranges[0].stop if sent.ranges else 0), data


def keeping(attack: Any, limit_bytes: int = 1 << 20) -> None:
    async def main() -> None:
        async with works() as shop:
            await attack(Keeper(shop, ReplicaActor(str(shop.me), limit_bytes=limit_bytes)))

    run_virtual(main())


def entries(slot: int, seq: int, stop: int, start: int = 0) -> bytes:
    return b"".join(bytes([(slot * 50 + seq + p) % 256]) * 8 for p in range(start, stop))


def test_ranges_of_many_logs_are_kept_apart() -> None:
    async def attack(keeper: Keeper) -> None:
        await keeper.store((0, 1, 1, 0, 3), (2, 7, 2, 0, 1))
        await keeper.store((2, 7, 2, 1, 5), (0, 1, 1, 3, 4))
        assert (await keeper.stored()).refused == 0
        assert await keeper.send(0, 1, 99) == (4, entries(0, 1, 4))
        assert await keeper.send(2, 7, 3) == (3, entries(2, 7, 3))
        assert await keeper.send(2, 8, 3) == (0, b"")
        assert await keeper.send(5, 7, 3) == (0, b"")

    keeping(attack)


def test_a_gap_is_told_and_mended_from_the_start() -> None:
    async def attack(keeper: Keeper) -> None:
        await keeper.store((0, 1, 1, 0, 3))
        await keeper.store((0, 1, 1, 4, 6), (1, 2, 2, 0, 1))
        gap = await keeper.shop.desk.wait_for(ReplicaGap)
        assert [each.slot for each in gap.ranges] == [0]
        await keeper.store((0, 1, 1, 0, 6))
        await keeper.stored()
        assert await keeper.send(0, 1, 99) == (6, entries(0, 1, 6))
        assert await keeper.send(1, 2, 99) == (1, entries(1, 2, 1))

    keeping(attack)


def test_a_new_epoch_cuts_and_an_old_one_is_late() -> None:
    async def attack(keeper: Keeper) -> None:
        await keeper.store((0, 1, 1, 0, 10))
        await keeper.store((0, 1, 2, 6, 6))
        await keeper.stored()
        assert await keeper.send(0, 1, 99) == (6, entries(0, 1, 6))
        await keeper.store((0, 1, 1, 6, 9))
        await keeper.stored()
        assert await keeper.send(0, 1, 99) == (6, entries(0, 1, 6))
        await keeper.store((0, 4, 3, 0, 2))
        await keeper.stored()
        assert await keeper.send(0, 1, 99) == (0, b"")
        assert await keeper.send(0, 4, 99) == (2, entries(0, 4, 2))
        assert keeper.actor.nbytes == 16

    keeping(attack)


def test_what_is_damaged_on_its_way_is_asked_for_again() -> None:
    async def attack(keeper: Keeper) -> None:
        await keeper.store((0, 1, 1, 0, 10), digest=7)
        gap = await keeper.shop.desk.wait_for(ReplicaGap)
        assert [each.slot for each in gap.ranges] == [0]
        assert not keeper.shop.desk.all(Replicated)
        assert await keeper.send(0, 1, 99) == (0, b"")

    keeping(attack)


def test_what_rots_in_memory_is_not_sent() -> None:
    async def attack(keeper: Keeper) -> None:
        for start in range(0, 10, 2):
            await keeper.store((0, 1, 1, start, start + 2))
        await keeper.stored()
        ((_, shelf),) = keeper.actor._shelves.items()
        shelf.copies[0].data[8 * 6 + 3] ^= 1
        assert await keeper.send(0, 1, 99) == (6, entries(0, 1, 6))
        assert keeper.actor.n_rotten == 1
        await keeper.store((0, 1, 2, 7, 9))
        gap = await keeper.shop.desk.wait_for(ReplicaGap)
        assert [each.slot for each in gap.ranges] == [0]
        assert keeper.actor.nbytes == 8 * 6

    keeping(attack)


def test_at_the_bound_the_newest_are_refused() -> None:
    async def attack(keeper: Keeper) -> None:
        await keeper.store((0, 1, 1, 0, 6))
        await keeper.store((1, 2, 2, 0, 5), (0, 1, 1, 6, 10))
        assert (await keeper.stored()).refused == 1
        assert keeper.actor.nbytes == 80
        assert await keeper.send(0, 1, 99) == (10, entries(0, 1, 10))
        await keeper.ref.tell(DropReplicas(pipeline=3))
        await keeper.store((1, 2, 2, 0, 10), pipeline=4)
        assert (await keeper.stored()).refused == 0
        assert keeper.actor.nbytes == 80

    keeping(attack, limit_bytes=80)


def test_what_comes_after_its_pipeline_was_dropped_is_not_kept() -> None:
    async def attack(keeper: Keeper) -> None:
        await keeper.store((0, 1, 1, 0, 6))
        await keeper.ref.tell(DropReplicas(pipeline=3))
        await keeper.store((0, 1, 1, 6, 7), (1, 2, 2, 0, 5))
        await keeper.store((0, 1, 1, 0, 2), pipeline=4)
        await keeper.stored()
        assert keeper.actor.nbytes == 8 * 2
        assert not keeper.shop.desk.all(ReplicaGap)

    keeping(attack)


@pytest.mark.parametrize(
    "ranges",
    [[(0, 1, 1, 5, 2)], [(0, 1, 1, -1, 2)], [(0, 1, 1, 0, 2), (1, 2, 2, 4, 3)]],
)
def test_rubbish_does_not_end_a_replica_actor(ranges: list[tuple[int, ...]]) -> None:
    async def attack(keeper: Keeper) -> None:
        await keeper.store((0, 1, 1, 0, 2))
        await keeper.store(*ranges)  # type: ignore[arg-type]
        await keeper.store((0, 1, 1, 2, 3), entry=5)
        await keeper.store((3, 1, 1, 0, 3))
        await keeper.stored()
        assert await keeper.send(3, 1, 99) == (3, entries(3, 1, 3))
        length, data = await keeper.send(0, 1, 99)
        assert data == entries(0, 1, length)

    keeping(attack)


def test_a_later_life_may_use_the_number_of_a_pipeline_again() -> None:
    """Whoever claims a worker counts pipelines anew."""

    async def main() -> None:
        async with works() as shop:
            joined = await shop.worker("w0")
            replicas = shop.node.ref(joined.replica_actor)
            note = Replicate(
                pipeline=1,
                stage=0,
                origin=str(shop.me),
                first=0,
                last=1,
                step=0,
                ranges=(),
                digest=digest_of([b""]),
            )
            await replicas.tell(DropReplicas(pipeline=1))
            await replicas.tell(note)
            await asyncio.sleep(1.0)
            assert not shop.desk.all(Replicated)
            await shop.node.ref(joined.host_actor).ask(Survey(below=0), deadline_s=5)
            await replicas.tell(note)
            await shop.desk.wait_for(Replicated)

    run_virtual(main())
