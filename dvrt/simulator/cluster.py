"""One cluster in virtual time: the runtime's scheduler, its pipelines, and what lies between them.

``advance`` plays until a moment, ``submit`` adds a request at it. Between decisions steps repeat
without the scheduler, which is told of them at its next decision.
"""

from __future__ import annotations

import math
from collections import deque

from dvrt.control.events import (
    Emit,
    Entered,
    Event,
    LogArrived,
    Place,
    Reject,
    Restore,
    Rewind,
    RunStep,
    StepFinished,
    Submit,
    Tick,
)
from dvrt.control.scheduler import Limits
from dvrt.control.steps import StepDone
from dvrt.errors import ConfigError, DvrtError
from dvrt.observe.trace import Tracer
from dvrt.requests import SampledToken
from dvrt.simulator.agenda import Agenda
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.book import OnEnd, RequestBook
from dvrt.simulator.deployment import PROMPTS, TOKENS, Deployment
from dvrt.simulator.leaping import LeapingScheduler
from dvrt.simulator.line import Flight, Line
from dvrt.simulator.network import Network
from dvrt.simulator.outages import Outages
from dvrt.simulator.spans import record_spans
from dvrt.simulator.tally import Tally

NO_LIMIT = 1 << 60
TOKEN = SampledToken(id=0)


class Cluster:
    """``leaps`` False tells the scheduler of every step; the results are the same."""

    def __init__(
        self,
        deployment: Deployment,
        tally: Tally,
        *,
        number: int = 0,
        leaps: bool = True,
        tracer: Tracer | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        self.deployment, self.number = deployment, number
        self.now = 0.0
        self.agenda = Agenda()
        self.n_decisions = 0
        self._tally, self._leaps, self._tracer = tally, leaps, tracer
        self._book = RequestBook(tally, on_end)
        self._backlog: deque[Arrival] = deque()
        limits = Limits(max_context=NO_LIMIT, vocab_size=1, max_queue=NO_LIMIT)
        self.scheduler = LeapingScheduler(deployment.plans(), limits)
        slots = {TOKENS: deployment.device_slots}
        self.lines = {
            key: Line(
                key,
                figures,
                deployment.links,
                slots.get(key),
                keeps_times=tracer is not None or deployment.needs_times(key),
            )
            for key, figures in deployment.lines
        }
        self._enough = 3 * sum(line.shape().n_slots for _, line in deployment.lines)
        self.network = Network(self)
        self.outages = Outages(self)

    def __repr__(self) -> str:
        return f"<Cluster {self.number} at {self.now:g} s, {self.n_open} requests>"

    @property
    def n_open(self) -> int:
        return len(self._book) + len(self._backlog)

    @property
    def n_ended(self) -> int:
        return self._book.n_ended

    def submit(self, arrival: Arrival) -> None:
        """A request comes now. ``advance`` to its arrival first."""
        self.now = max(self.now, arrival.at_s)
        self._tally.arrived(arrival.at_s)
        self._backlog.append(arrival)
        self._feed()

    def advance(self, until_s: float) -> None:
        """Play all that happens before ``until_s``; with infinity, until no request is open.

        Raises DvrtError if requests are open and nothing can happen any more, or only failures.
        """
        lines = list(self.lines.values())
        while True:
            if until_s == math.inf and not self.n_open:
                return
            due_s = min(self.agenda.next_s, until_s)
            first, first_s, others_s = None, due_s, due_s
            for line in lines:
                if line.flights:
                    done_s = line.flights[0].done_s
                    if done_s < first_s:
                        first, first_s, others_s = line, done_s, first_s
                    elif done_s < others_s:
                        others_s = done_s
            if first is not None:
                self._play(first, others_s)
            elif self.agenda.next_s < until_s:
                self.now, action = self.agenda.take()
                action()
            elif until_s < math.inf:
                return
            else:
                raise DvrtError(f"{self.n_open} requests wait for ever: {self.scheduler!r}")

    def finish(self) -> None:
        """Put what the stages did into the tally; call it once, at the end."""
        for key, line in self.lines.items():
            role = "prompts" if key == PROMPTS else "tokens"
            self._tally.count("steps", line.n_sent)
            self._tally.count("stage_steps", line.n_sent * len(line.busy_s))
            for stage, seconds in enumerate(line.busy()):
                self._tally.busy(f"{role} {stage}", seconds)
                if line.pagings:
                    self._tally.count("swap_wait_s", line.pagings[stage].wait_s)
        statistics = self.scheduler.statistics()
        self._tally.count("decisions", self.n_decisions)
        self._tally.count("recomputed_tokens", statistics.recomputed_tokens)
        self._tally.count("restored_tokens", statistics.restored_tokens)
        self._tally.count("failures", self.outages.n_failures)
        self._tally.count("sent_bytes", self.network.sent_bytes)

    def give(self, event: Event) -> None:
        """Tell the scheduler, and do what it says."""
        self.n_decisions += 1
        for command in self.scheduler.handle(event):
            match command:
                case RunStep(step=step):
                    self._launch(Flight(step))
                case Emit():
                    self._book.emitted(command, self.now)
                case Entered(request_id=request_id, place=place):
                    self._book.entered(command)
                    if place is Place.TOKEN and len(self.lines) > 1:
                        self._disturb(TOKENS, self.scheduler.slot_of(request_id))
                case Rewind(pipeline=pipeline):
                    self.lines[pipeline].void(self.now)
                case Restore():
                    self.network.restore(command)
                case Reject(error=error):
                    raise ConfigError(f"a request cannot be served: {error}")
        if self._backlog:
            self._feed()

    def arrived(self, pipeline: int, stage: int, slot: int, seq: int, epoch: int, n: int) -> None:
        """A log is at a stage; the microbatch that it comes to decides anew."""
        self._disturb(pipeline, slot)
        self.give(
            LogArrived(
                pipeline=pipeline,
                stage=stage,
                slot=slot,
                seq=seq,
                epoch=epoch,
                length=n,
                now=self.now,
            )
        )

    def settle(self, pipeline: int) -> None:
        """Tell the scheduler of all repetitions so far, before it hears that their steps end."""
        line = self.lines[pipeline]
        for flight in (*line.flights, *line.stuck):
            if flight.skipped:
                self.scheduler.leap(flight.step, flight.skipped, is_ending=False)

    def tick_later(self) -> None:
        """Have the scheduler look at its deadlines when the next one is due."""
        due_s = self.scheduler.next_deadline()
        if due_s is not None:
            self.agenda.put(due_s, lambda: self.give(Tick(now=self.now)))

    def _disturb(self, pipeline: int, slot: int) -> None:
        """Somebody comes to a microbatch: what follows from its step is no longer known."""
        line = self.lines[pipeline]
        for flight in (*line.flights, *line.stuck):
            if flight.step.microbatch == slot // line.figures.batch_size:
                flight.quiet = 0

    def _feed(self) -> None:
        """Submit what has come, but never more than the scheduler's next decisions can look at."""
        while self._backlog and self.scheduler.n_queued < self._enough:
            request = self._book.open(self._backlog.popleft())
            self.give(Submit(request=request, now=self.now))

    def _launch(self, flight: Flight) -> None:
        if self._leaps:
            flight.quiet, flight.has_room = self.scheduler.quiet_steps(flight.step)
        self._send(flight)

    def _send(self, flight: Flight) -> None:
        line = self.lines[flight.step.pipeline]
        line.send(flight, self.now)
        if flight.ends:
            self.network.sent(line, flight)

    def _play(self, line: Line, until_s: float) -> None:
        """End the line's next step, and those after it before ``until_s`` that are quiet."""
        flights = line.flights
        nobody_waits = not self.scheduler.n_queued
        while True:
            flight = flights.popleft()
            self.now = flight.done_s
            if self._tracer is not None:
                record_spans(self._tracer, self.number, line, flight)
            if not (flight.quiet > 0 and (nobody_waits or not flight.has_room)):
                self._end(flight)
                return
            flight.repeat()
            self._send(flight)
            if not flights or flights[0].done_s >= until_s or self.agenda.next_s < until_s:
                return

    def _end(self, flight: Flight) -> None:
        step = flight.step
        if flight.skipped:
            self.scheduler.leap(step, flight.skipped, is_ending=True)
        n_drawn = sum(item.draw for item in step.decodes)
        n_firsts = sum(bool(chunk.draws) for chunk in step.chunks)
        done = StepDone(
            id=step.id,
            microbatch=step.microbatch,
            pipeline=step.pipeline,
            decoded=(TOKEN,) * n_drawn,
            firsts=((TOKEN,),) * n_firsts,
        )
        self.give(StepFinished(done=done, now=self.now))
