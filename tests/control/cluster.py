"""A whole cluster in miniature: stages that keep tokens for entries, channels that reorder, losses.

Every stage checks what a real one checks; a stage's content must equal its predecessor's.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from dvrt.control.events import (
    Cancel,
    Command,
    Emit,
    Entered,
    LogArrived,
    Place,
    Rebalance,
    Reject,
    Restore,
    Retired,
    Rewind,
    Rewound,
    RunStep,
    StageLost,
    StageReady,
    StepFinished,
    StepsLost,
    Submit,
    Tick,
)
from dvrt.control.pipeline import PipelinePlan
from dvrt.control.scheduler import Limits, Scheduler
from dvrt.control.steps import Step, StepDone
from dvrt.kv.log import LogTable
from dvrt.requests import FinishReason, Request, SampledToken

VOCAB = 50
Content = tuple[int, ...]
CONTROLLER = (-1, -1)


def next_token(context: Content, sample: int) -> int:
    """The stand-in model: a hash of everything in the log."""
    return random.Random(f"{context}{sample}").randrange(VOCAB)


def expected_tokens(request: Request, sample: int) -> list[int]:
    tokens = list(request.prompt_ids)
    while len(tokens) - len(request.prompt_ids) < request.max_tokens:
        tokens.append(next_token(tuple(tokens), sample))
        if tokens[-1] in request.eos_ids:
            break
    return tokens[len(request.prompt_ids) :]


class MiniStage:
    """One stage: its logs, what it received, and the copies that its holder has of them."""

    def __init__(self, cluster: MiniCluster, plan: PipelinePlan, stage: int) -> None:
        self.cluster, self.plan, self.stage = cluster, plan, stage
        self.me = (plan.id, stage)
        self.logs = LogTable(plan.shape.n_slots, 256)
        self.content: dict[int, list[int]] = defaultdict(list)
        self.samples: dict[int, int] = {}
        self.received: dict[int, tuple[int, int, int]] = {}
        self.below = 0
        self.is_dead = False
        self.is_cut = False

    def rewind(self, below: int) -> None:
        self.below = max(self.below, below)
        self.is_cut = False

    def receive(
        self, slot: int, seq: int, epoch: int, start: int, tokens: Content, commits: bool
    ) -> None:
        held = self.received.get(slot)
        log = self.logs.get(slot)
        is_late = log is not None and log.epoch > epoch
        if self.is_dead or is_late or (held is not None and held[1] > epoch):
            return
        if held is None or held[1] < epoch:
            held = (seq, epoch, 0)
            if log is not None:
                self.logs.close(slot, seq=log.seq)
        assert held[0] == seq
        if start > held[2]:
            return
        self.write(slot, start, tokens)
        stop = start + len(tokens)
        self.received[slot] = (seq, epoch, stop)
        if commits:
            self.report(slot, seq, epoch, stop)

    def report(self, slot: int, seq: int, epoch: int, length: int) -> None:
        pipeline, stage = self.me
        self.cluster.send(
            self.me,
            CONTROLLER,
            lambda: self.cluster.give(
                LogArrived(
                    pipeline=pipeline,
                    stage=stage,
                    slot=slot,
                    seq=seq,
                    epoch=epoch,
                    length=length,
                    now=self.cluster.now,
                )
            ),
        )

    def execute(self, step: Step, before: dict[int, Content]) -> None:
        if step.id < self.below or self.is_dead:
            return
        self.begin(step)
        for ship in step.ships:
            log = self.logs.get(ship.slot)
            assert log is not None
            assert (log.seq, log.epoch) == (ship.seq, ship.epoch)
            assert log.length >= ship.stop
            tokens = tuple(self.content[ship.slot][: ship.stop])
            self.ship(ship.to, ship.target, ship.seq, ship.epoch, 0, tokens, ship.commits)
        for item in step.decodes:
            self.extend(item.slot, item.seq, item.epoch, item.position, (item.token,))
        for chunk in step.chunks:
            if self.plan.shape.repeats:
                assert chunk.start % self.plan.shape.chunk_tokens == 0
            self.extend(chunk.slot, chunk.seq, chunk.epoch, chunk.start, chunk.tokens)
            if chunk.to is not None:
                where = (chunk.to, chunk.target, chunk.seq, chunk.epoch, chunk.start)
                self.ship(*where, chunk.tokens, chunk.commits)
        slots = [item.slot for item in (*step.decodes, *step.chunks)]
        content = {slot: self.tokens(slot) for slot in slots}
        assert not before or before == content, "stages disagree about a log"
        self.pass_on(step, content)

    def begin(self, step: Step) -> None:
        for opened in step.opens:
            self.logs.open(opened.slot, seq=opened.seq, epoch=opened.epoch)
            self.samples[opened.slot] = opened.sample
        for adopt in step.adopts:
            held = self.held(adopt.slot, adopt.seq)
            assert held >= adopt.n_tokens, f"{self.me}: {adopt} of {held}"
            self.logs.open(adopt.slot, seq=adopt.seq, epoch=adopt.epoch, length=adopt.n_tokens)
            self.samples[adopt.slot] = adopt.sample
        for fork in step.forks:
            names = {"seq": fork.seq, "epoch": fork.epoch, "length": fork.n_tokens}
            self.logs.fork(fork.source, fork.target, **names)
            self.write(fork.target, 0, self.content[fork.source][: fork.n_tokens])
            self.samples[fork.target] = fork.sample

    def held(self, slot: int, seq: int) -> int:
        """How many entries of the sequence are in the slot, its own or received."""
        log, received = self.logs.get(slot), self.received.get(slot)
        own = log.length if log is not None and log.seq == seq else 0
        return max(own, received[2] if received is not None and received[0] == seq else 0)

    def extend(self, slot: int, seq: int, epoch: int, start: int, tokens: Content) -> None:
        self.logs.extend(slot, seq=seq, epoch=epoch, start=start, stop=start + len(tokens))
        self.write(slot, start, tokens)

    def write(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        """Into the memory of the slot, whoever owns it: what lies beyond stays as it was."""
        self.content[slot][start : start + len(tokens)] = tokens

    def tokens(self, slot: int) -> Content:
        log = self.logs.get(slot)
        assert log is not None
        return tuple(self.content[slot][: log.length])

    def ship(
        self, to: int, slot: int, seq: int, epoch: int, start: int, tokens: Content, commits: bool
    ) -> None:
        """To every target stage; the mini-stages of a pipeline all hold the same."""
        if self.stage:
            return
        for target in self.cluster.stages_of(to):
            stage = self.cluster.stages[target]
            self.cluster.send(
                self.me,
                target,
                lambda stage=stage: stage.receive(slot, seq, epoch, start, tokens, commits),
            )

    def pass_on(self, step: Step, content: dict[int, Content]) -> None:
        if self.stage + 1 < self.plan.shape.n_stages:
            if self.is_cut:
                return
            successor = self.cluster.stages[self.plan.id, self.stage + 1]
            self.cluster.send(self.me, successor.me, lambda: successor.execute(step, content))
            return
        decoded = [
            SampledToken(id=next_token(content[item.slot], self.samples[item.slot]))
            for item in step.decodes
            if item.draw
        ]
        firsts = [
            tuple(SampledToken(id=next_token(content[chunk.slot], n)) for n in chunk.draws)
            for chunk in step.chunks
            if chunk.draws
        ]
        done = StepDone(
            id=step.id,
            microbatch=step.microbatch,
            pipeline=step.pipeline,
            decoded=tuple(decoded),
            firsts=tuple(firsts),
        )
        cluster = self.cluster
        cluster.send(
            self.me, CONTROLLER, lambda: cluster.give(StepFinished(done=done, now=cluster.now))
        )


class MiniCluster:
    """The scheduler, its stages and the channels between them; ``turn`` delivers one message."""

    def __init__(self, plans: list[PipelinePlan], seed: int, max_context: int = 64) -> None:
        self.rng = random.Random(seed)
        limits = Limits(max_context=max_context, vocab_size=VOCAB, max_queue=1000)
        self.scheduler = Scheduler(plans, limits)
        self.stages: dict[tuple[int, int], MiniStage] = {}
        self.copies: dict[tuple[int, int], dict[int, tuple[int, Content]]] = defaultdict(dict)
        self.channels: dict[tuple[Any, Any], deque[Callable[[], None]]] = defaultdict(deque)
        self.lost: list[tuple[int, int]] = []
        self.out: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.ends: dict[tuple[str, int], FinishReason] = {}
        self.places: dict[str, list[Place]] = defaultdict(list)
        self.retired: list[int] = []
        self.rewinding: list[int] = []
        self.n_computed = 0
        self.now = 0.0
        self.add(plans)

    def add(self, plans: list[PipelinePlan]) -> None:
        for plan in plans:
            for stage in range(plan.shape.n_stages):
                self.stages[plan.id, stage] = MiniStage(self, plan, stage)

    def stages_of(self, pipeline: int) -> list[tuple[int, int]]:
        return [key for key in self.stages if key[0] == pipeline]

    def send(self, source: Any, target: Any, deliver: Callable[[], None]) -> None:
        self.channels[source, target].append(deliver)

    def give(self, event: object) -> None:
        for command in self.scheduler.handle(event):
            self.perform(command)
        self.scheduler.check_integrity()

    def perform(self, command: Command) -> None:
        match command:
            case RunStep(step=step):
                first = self.stages[step.pipeline, 0]
                self.send(CONTROLLER, first.me, lambda: first.execute(step, {}))
            case Rewind(pipeline=pipeline, below=below):
                for key in self.stages_of(pipeline):
                    self.send(CONTROLLER, key, lambda key=key: self.stages[key].rewind(below))
            case Restore():
                self.restore(command)
            case Retired(pipeline=pipeline):
                self.retired.append(pipeline)
                self.lost = [key for key in self.lost if key[0] != pipeline]
            case Entered(request_id=request_id, place=place):
                self.places[request_id].append(place)
            case Emit():
                self.take(command)
            case Reject():
                raise AssertionError(command.error)

    def restore(self, command: Restore) -> None:
        key = (command.pipeline, command.stage)
        for wanted in command.logs:
            seq, tokens = self.copies[key].get(wanted.slot, (-1, ()))
            kept = tokens[: wanted.length] if seq == wanted.seq else ()
            if self.rng.random() < 0.3:
                kept = kept[: self.rng.randrange(len(kept) + 1)]
            where = (wanted.slot, wanted.seq, wanted.epoch)
            if kept:
                self.send(
                    "copies",
                    key,
                    lambda where=where, kept=kept: self.stages[key].receive(*where, 0, kept, True),
                )
            else:
                self.send("copies", key, lambda where=where: self.stages[key].report(*where, 0))

    def take(self, emit: Emit) -> None:
        key = (emit.request_id, emit.sample)
        assert key not in self.ends, "a token after the end"
        if emit.token is not None:
            assert emit.index == len(self.out[key])
            self.out[key].append(emit.token.id)
        if emit.finish is not None:
            self.ends[key] = emit.finish

    def submit(self, request: Request) -> None:
        self.give(Submit(request=request, now=self.now))

    def cancel(self, request_id: str) -> None:
        self.give(Cancel(request_id=request_id, now=self.now))

    def turn(self) -> bool:
        """Deliver one message of a channel picked at random; False if there is none."""
        busy = [key for key, queue in self.channels.items() if queue]
        if not busy:
            return False
        self.now += 0.001
        self.channels[self.rng.choice(busy)].popleft()()
        if self.rng.random() < 0.3:
            self.copy()
        return True

    def copy(self) -> None:
        """The holder of one stage's copies catches up."""
        stage = self.stages[self.rng.choice(sorted(self.stages))]
        self.copies[stage.me] = {slot: (log.seq, stage.tokens(slot)) for slot, log in stage.logs}

    def lose(self, key: tuple[int, int]) -> None:
        """A stage dies; a part of what it had sent still arrives."""
        self.stages[key].is_dead = True
        for (source, target), queue in list(self.channels.items()):
            if target == key:
                queue.clear()
            elif source == key:
                for _ in range(self.rng.randrange(len(queue) + 1)):
                    queue.pop()
        if key not in self.lost:
            self.lost.append(key)
        self.give(StageLost(pipeline=key[0], stage=key[1], now=self.now))

    def cut(self) -> None:
        """A link between two living stages breaks; who sends on it says so, or has forgotten."""
        links = [k for k, queue in self.channels.items() if queue and CONTROLLER not in k]
        links = [k for k in links if "copies" not in k and k[0][0] not in self.retired]
        if not links:
            return
        source, target = self.rng.choice(links)
        self.channels[source, target].clear()
        if source[0] == target[0]:
            self.stages[source].is_cut = True
            self.give(StepsLost(pipeline=source[0], now=self.now))
            self.rewinding.append(source[0])

    def repair(self) -> None:
        """A replacement is there; its neighbours were told to rewind before they knew of it."""
        key = self.lost.pop(self.rng.randrange(len(self.lost)))
        self.hear_rewind(key[0])
        self.stages[key] = MiniStage(self, self.stages[key].plan, key[1])
        self.give(StageReady(pipeline=key[0], stage=key[1], now=self.now))

    def hear_rewind(self, pipeline: int) -> None:
        """Every stage has taken note of what the controller told it."""
        for survivor in self.stages_of(pipeline):
            queue = self.channels[CONTROLLER, survivor]
            while queue:
                queue.popleft()()

    def rewind(self) -> None:
        """The stages behind a broken link have all been told."""
        pipeline = self.rewinding.pop(self.rng.randrange(len(self.rewinding)))
        self.hear_rewind(pipeline)
        self.give(Rewound(pipeline=pipeline, now=self.now))

    def rebalance(self, plans: list[PipelinePlan]) -> None:
        self.add(plans)
        self.give(Rebalance(pipelines=tuple(plans), now=self.now))

    def drain(self) -> None:
        for _ in range(1_000_000):
            if self.lost:
                self.repair()
            if self.rewinding:
                self.rewind()
            if not self.turn() and not self.lost:
                at = self.scheduler.next_deadline()
                if at is None:
                    break
                self.now = max(self.now, at)
                self.give(Tick(now=self.now))
        assert self.scheduler.statistics().n_requests == 0, repr(self.scheduler)
