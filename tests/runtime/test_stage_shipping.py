"""Logs that move between pipelines with other splits, in real actors: not a bit may change."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dvrt.control.steps import Adopt, Chunk, Fork, Open, Ship
from dvrt.kv.digest import Tally, digest_of
from dvrt.models.tiny import write_tiny
from dvrt.protocol.messages import Arrived, CloseStage, Commit, Connect, Entries, StageLoaded
from dvrt.virtual import run_virtual
from tests.runtime.stage_crew import GREEDY, Line, Works, works

PROMPT = [(7 * i) % 90 for i in range(21)]
SLOT, TARGET = 1, 6


async def arrived(shop: Works, line: Line, seq: int, epoch: int, length: int) -> None:
    """Every stage of the pipeline has the log."""
    for stage in range(len(line.stages)):
        name = (line.id, stage, seq, epoch)
        news = await shop.desk.wait_for(
            Arrived,
            lambda e, name=name: (e.pipeline, e.stage, e.seq, e.epoch) == name,
        )
        assert (news.length, news.reason) == (length, "")


async def alone(shop: Works, n: int) -> list[int]:
    """What one pipeline makes of the prompt: the first token and ``n`` more."""
    line = await shop.line(9, 1)
    await shop.connect(line)
    epoch, first = await shop.prompt(line, 0, 1, PROMPT)
    return [first, *await shop.decode(line, 0, 1, epoch, len(PROMPT), first, n)]


async def through(n_prompt: int, n_token: int, n: int = 6, **model: Any) -> None:
    """A prompt in one pipeline, its tokens in another; the same as all in one."""
    async with works(**model) as shop:
        prompts, tokens = await shop.line(0, n_prompt), await shop.line(1, n_token)
        await shop.connect(prompts, [tokens])
        await shop.connect(tokens)
        epoch, first = await shop.prompt(prompts, SLOT, 5, PROMPT, to=1, target=TARGET)
        await arrived(shop, tokens, 5, epoch, len(PROMPT))
        out = [first, *await shop.adopt(tokens, TARGET, 5, len(PROMPT), first, n)]
        assert out == await alone(shop, n)


@pytest.mark.parametrize(("n_prompt", "n_token"), [*product(range(1, 5), range(1, 5))])
def test_a_prompt_streams_to_any_other_split(n_prompt: int, n_token: int) -> None:
    for seed in range(3):
        run_virtual(through(n_prompt, n_token), seed=seed)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {
        family: write_tiny(folder / family, family, n_layers=5, vocab_size=97, max_positions=128)
        for family in ("gpt2", "llama", "bloom", "opt")
    }


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "opt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_a_real_prompt_streams_to_another_split(
    families: dict[str, Path], family: str, dtype: str
) -> None:
    await through(3, 2, model=families[family], dtype=dtype)


@pytest.mark.parametrize("scheme", ["local", "tcp"])
async def test_on_both_loops_and_networks(loop_kind: str, scheme: str) -> None:
    await through(2, 3, scheme=scheme)


@pytest.mark.parametrize("sizes", [(3, 2), (1, 5), (4, 1)])
def test_a_running_log_is_shipped_whole(sizes: tuple[int, int]) -> None:
    """As when the split changes: entries of prompt and tokens, in one ship, twice."""

    async def main() -> None:
        async with works() as shop:
            old, new = await shop.line(0, sizes[0]), await shop.line(1, sizes[1])
            await shop.connect(old, [new])
            await shop.connect(new)
            epoch, first = await shop.prompt(old, SLOT, 5, PROMPT)
            n = len(PROMPT)
            out = [first, *await shop.decode(old, SLOT, 5, epoch, n, first, 4)]
            for extra in range(2):
                stop, newer = n + 4 + extra, shop.next_epoch()
                adopt = Adopt(
                    slot=SLOT, seq=5, epoch=newer, n_tokens=stop, sample=0, sampling=GREEDY
                )
                ship = Ship(
                    slot=SLOT, seq=5, epoch=newer, stop=stop, to=1, target=TARGET, commits=True
                )
                await shop.run(old, adopts=(adopt,), ships=(ship,))
                await arrived(shop, new, 5, newer, stop)
                out += await shop.decode(old, SLOT, 5, newer, stop, out[-1], 1)
            rest = await shop.adopt(new, TARGET, 5, stop, out[-2], 5)
            assert [*out[:-1], *rest] == await alone(shop, 10)

    run_virtual(main())


def test_a_ship_and_later_chunks_make_one_log() -> None:
    """A row is set aside in the middle of a prompt: what is there goes first, the rest follows."""

    async def main() -> None:
        async with works() as shop:
            prompts, tokens = await shop.line(0, 2), await shop.line(1, 3)
            await shop.connect(prompts, [tokens])
            await shop.connect(tokens)
            epoch, _ = await shop.prompt(prompts, SLOT, 5, PROMPT[:16])
            ship = Ship(slot=SLOT, seq=5, epoch=epoch, stop=16, to=1, target=TARGET, commits=False)
            rest = Chunk(
                slot=SLOT,
                seq=5,
                epoch=epoch,
                start=16,
                tokens=tuple(PROMPT[16:]),
                draws=(0,),
                to=1,
                target=TARGET,
                commits=True,
            )
            done = await shop.run(prompts, ships=(ship,), chunks=(rest,))
            first = done.firsts[0][0].id
            await arrived(shop, tokens, 5, epoch, len(PROMPT))
            out = [first, *await shop.adopt(tokens, TARGET, 5, len(PROMPT), first, 5)]
            assert out == await alone(shop, 5)

    run_virtual(main())


def test_two_ships_under_one_epoch_both_arrive() -> None:
    async def main() -> None:
        async with works() as shop:
            old, new = await shop.line(0, 2), await shop.line(1, 3)
            await shop.connect(old, [new])
            await shop.connect(new)
            epoch, first = await shop.prompt(old, SLOT, 5, PROMPT)
            for extra in range(3):
                stop = len(PROMPT) + extra
                ship = Ship(
                    slot=SLOT, seq=5, epoch=epoch, stop=stop, to=1, target=TARGET, commits=True
                )
                await shop.run(old, ships=(ship,))
                for stage in range(3):
                    name = (1, stage, stop)
                    await shop.desk.wait_for(
                        Arrived, lambda e, name=name: (e.pipeline, e.stage, e.length) == name
                    )
                (first,) = await shop.decode(old, SLOT, 5, epoch, stop, first, 1)
            assert all(each.length for each in shop.desk.all(Arrived))

    run_virtual(main())


class Forger:
    """Sends entries of the hash model by hand to a stage that holds the layers [0, 2) of 5."""

    def __init__(self, shop: Works, line: Line) -> None:
        self.shop, self.ref = shop, shop.node.ref(line.stages[0].actor)
        self.tally = Tally()

    async def send(self, data: bytes | None = None, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "slot": TARGET,
            "seq": 5,
            "epoch": 50,
            "first": 0,
            "last": 2,
            "start": 0,
            "stop": 4,
            "sender": "forger",
            "index": len(self.tally),
            **changes,
        }
        if data is None:
            data = bytes(
                8 * (fields["stop"] - fields["start"]) * (fields["last"] - fields["first"])
            )
        fields.setdefault("digest", digest_of([data]))
        self.tally.add(fields["index"], nbytes=len(data), digest=fields["digest"])
        await self.ref.tell(Entries(**fields), data)

    async def commit(self, length: int, **changes: Any) -> None:
        total = self.tally.sum()
        fields: dict[str, Any] = {
            "slot": TARGET,
            "seq": 5,
            "epoch": 50,
            "first": 0,
            "last": 2,
            "length": length,
            "sender": "forger",
            "chunks": total.chunks,
            "nbytes": total.nbytes,
            "digest": total.digest,
            **changes,
        }
        await self.ref.tell(Commit(**fields))

    async def news(self, epoch: int = 50) -> Arrived:
        return await self.shop.desk.wait_for(Arrived, lambda each: each.epoch == epoch)


def forging(attack: Any) -> None:
    """Attack a stage that also serves; afterwards it still serves, and right."""

    async def main() -> None:
        async with works() as shop:
            line = await shop.line(0, 3)
            await shop.connect(line)
            epoch, first = await shop.prompt(line, SLOT, 5, PROMPT)
            out = [first, *await shop.decode(line, SLOT, 5, epoch, len(PROMPT), first, 2)]
            await attack(Forger(shop, line))
            await asyncio.sleep(1)
            out += await shop.decode(line, SLOT, 5, epoch, len(PROMPT) + 2, out[-1], 2)
            assert out == await alone(shop, 4)

    run_virtual(main())


def test_what_is_sent_right_arrives_once() -> None:
    async def attack(forger: Forger) -> None:
        await forger.send(start=0, stop=4)
        await forger.send(start=4, stop=6)
        await forger.commit(6)
        assert (await forger.news()).length == 6
        assert len(forger.shop.desk.all(Arrived)) == 1

    forging(attack)


def test_a_wrong_digest_is_refused() -> None:
    async def attack(forger: Forger) -> None:
        await forger.send(digest=1)
        news = await forger.news()
        assert news.length == 0
        assert "digest" in news.reason

    forging(attack)


def test_a_missing_part_is_refused_at_the_commit() -> None:
    async def attack(forger: Forger) -> None:
        await forger.send(start=0, stop=2)
        await forger.send(start=4, stop=6)
        await forger.commit(6)
        assert (await forger.news()).length == 0

    forging(attack)


def test_a_commit_that_counts_more_is_refused() -> None:
    async def attack(forger: Forger) -> None:
        await forger.send()
        await forger.commit(4, chunks=2)
        assert (await forger.news()).length == 0

    forging(attack)


def test_a_commit_alone_is_refused() -> None:
    async def attack(forger: Forger) -> None:
        await forger.commit(4)
        assert (await forger.news()).length == 0

    forging(attack)


def test_after_a_damaged_log_another_sender_may_bring_it() -> None:
    async def attack(forger: Forger) -> None:
        await forger.send(digest=1)
        assert (await forger.news()).length == 0
        other = Forger(forger.shop, Line(0, (await _stage(forger),), ((0, 2),), ("",)))
        await other.send(sender="other")
        await other.commit(4, sender="other")
        await forger.shop.desk.wait_for(Arrived, lambda each: each.length == 4)

    forging(attack)


async def _stage(forger: Forger) -> StageLoaded:
    return await forger.shop.desk.wait_for(
        StageLoaded, lambda each: (each.pipeline, each.stage) == (0, 0)
    )


def test_an_older_log_is_late_and_changes_nothing() -> None:
    async def attack(forger: Forger) -> None:
        await forger.send(epoch=60)
        await forger.send(b"\x11" * 64, epoch=59)
        await forger.commit(4, epoch=60, chunks=1, nbytes=64, digest=_sum_of_first(forger))
        assert (await forger.news(60)).length == 4
        assert not [each for each in forger.shop.desk.all(Arrived) if each.epoch == 59]

    forging(attack)


def _sum_of_first(forger: Forger) -> int:
    tally = Tally()
    data = bytes(64)
    tally.add(0, nbytes=len(data), digest=digest_of([data]))
    return tally.sum().digest


def test_entries_older_than_the_log_in_use_are_dropped() -> None:
    async def attack(forger: Forger) -> None:
        await forger.send(b"\x11" * 64, slot=SLOT, epoch=0)
        await forger.commit(4, slot=SLOT, epoch=0)
        await asyncio.sleep(1)
        assert not forger.shop.desk.all(Arrived)

    forging(attack)


@pytest.mark.parametrize(
    "changes",
    [
        {"slot": 99},
        {"slot": -1},
        {"first": 1, "last": 3},
        {"first": -1, "last": 1},
        {"stop": 1000},
        {"start": -2, "stop": 2},
        {"start": 4, "stop": 4},
        {"first": 1, "last": 1},
        {"data": b"abc"},
        {"data": b""},
    ],
    ids=str,
)
def test_rubbish_does_not_end_a_stage(changes: dict[str, Any]) -> None:
    async def attack(forger: Forger) -> None:
        await forger.send(**{"data": bytes(64), **changes})
        await forger.commit(4)

    forging(attack)


def test_entries_without_bytes_do_not_end_a_stage() -> None:
    async def attack(forger: Forger) -> None:
        await forger.ref.tell(
            Entries(
                slot=TARGET,
                seq=5,
                epoch=50,
                first=0,
                last=2,
                start=0,
                stop=4,
                sender="forger",
                index=0,
                digest=0,
            )
        )

    forging(attack)


def test_a_log_that_comes_ends_the_one_in_its_slot() -> None:
    """It may be forked no more: its memory is the new one's."""

    async def main() -> None:
        async with works() as shop:
            line = await shop.line(0, 1)
            await shop.connect(line)
            await shop.prompt(line, TARGET, 4, PROMPT)
            forger = Forger(shop, line)
            await forger.send(last=5)
            fork = Fork(
                source=TARGET, target=SLOT, n_tokens=8, seq=6, epoch=90, sample=0, sampling=GREEDY
            )
            await shop.send(line, forks=(fork,))
            end = await shop.workers["w0-0"].wait()
            assert not end.is_clean

    run_virtual(main())


def test_a_stage_that_closes_is_gone_and_its_worker_takes_another() -> None:
    async def main() -> None:
        async with works() as shop:
            line = await shop.line(0, 1)
            await shop.connect(line)
            await shop.prompt(line, SLOT, 5, PROMPT)
            host = shop.node.ref(shop.joined["w0-0"].host_actor)
            gone = asyncio.get_running_loop().create_future()
            shop.node.watch(
                shop.node.ref(line.stages[0].actor), lambda _, why: gone.set_result(why)
            )
            await host.tell(CloseStage(pipeline=0, stage=0, reason="the split changed"))
            assert (await gone).startswith("stopped")
            again = await shop.load("w0-0", 1, 0, 1, (0, 5))
            other = Line(1, (again,), ((0, 5),), ("w0-0",))
            await shop.connect(other)
            _, first = await shop.prompt(other, SLOT, 5, PROMPT)
            assert first == (await alone(shop, 1))[0]
            assert shop.workers["w0-0"].exit is None

    run_virtual(main())


def test_two_stages_in_one_worker() -> None:
    async def main() -> None:
        async with works() as shop:
            stages = [await shop.load("w", 3, k, 2, cut) for k, cut in enumerate(((0, 2), (2, 5)))]
            line = Line(3, tuple(stages), ((0, 2), (2, 5)), ("w", "w"))
            await shop.connect(line)
            epoch, first = await shop.prompt(line, SLOT, 5, PROMPT)
            out = [first, *await shop.decode(line, SLOT, 5, epoch, len(PROMPT), first, 4)]
            assert out == await alone(shop, 4)

    run_virtual(main())


def test_an_adoption_of_more_than_is_there_ends_the_worker() -> None:
    async def main() -> None:
        async with works() as shop:
            line = await shop.line(0, 1)
            await shop.connect(line)
            opened = Open(slot=0, seq=1, epoch=1, sample=0, sampling=GREEDY)
            adopt = Adopt(slot=1, seq=2, epoch=2, n_tokens=3, sample=0, sampling=GREEDY)
            await shop.send(line, opens=(opened,), adopts=(adopt,))
            end = await shop.workers["w0-0"].wait()
            assert not end.is_clean

    run_virtual(main())


@pytest.mark.virtual
async def test_a_target_that_dies_hurts_nobody() -> None:
    async with works() as shop:
        prompts, tokens = await shop.line(0, 1), await shop.line(1, 2)
        await shop.connect(prompts, [tokens])
        await shop.connect(tokens)
        shop.workers["w1-0"].kill()
        _, first = await shop.prompt(prompts, SLOT, 5, PROMPT, to=1, target=TARGET)
        await shop.desk.wait_for(Arrived, lambda each: (each.stage, each.length) == (1, 21))
        stage = await shop.load("new", 1, 0, 2, tokens.cuts[0])
        tokens = Line(1, (stage, tokens.stages[1]), tokens.cuts, ("new", tokens.workers[1]))
        await shop.connect(prompts, [tokens])
        await shop.connect(tokens)
        newer = shop.next_epoch()
        adopt = Adopt(slot=SLOT, seq=5, epoch=newer, n_tokens=21, sample=0, sampling=GREEDY)
        ship = Ship(slot=SLOT, seq=5, epoch=newer, stop=21, to=1, target=TARGET, commits=True)
        await shop.run(prompts, adopts=(adopt,), ships=(ship,))
        await arrived(shop, tokens, 5, newer, 21)
        out = [first, *await shop.adopt(tokens, TARGET, 5, 21, first, 3)]
        assert out == await alone(shop, 3)


@pytest.mark.virtual
async def test_a_next_stage_that_dies_hurts_nobody() -> None:
    async with works() as shop:
        line = await shop.line(0, 2)
        await shop.connect(line)
        await shop.prompt(line, SLOT, 5, PROMPT)
        shop.workers["w0-1"].kill()
        await shop.send(line, opens=(Open(slot=2, seq=9, epoch=40, sample=0, sampling=GREEDY),))
        await asyncio.sleep(0.05)
        await shop.send(line, opens=(Open(slot=2, seq=9, epoch=41, sample=0, sampling=GREEDY),))
        await shop.node.ref(line.stages[0].actor).tell(Connect(next_actor=str(shop.me)))
        await asyncio.sleep(0.05)
        assert shop.workers["w0-0"].exit is None
