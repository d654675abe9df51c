"""One pipeline in virtual time: each stage computes its steps first in, first out.

Because no step overtakes another, a step's whole way through the stages is known when it is sent.
Knows no scheduler and no requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from dvrt.control.steps import Chunk, Step
from dvrt.simulator.deployment import LineFigures, LinkFigures
from dvrt.simulator.paging import PagedStep, Paging, frames_of


class Flight:
    """A step on its way, and its repetitions that the scheduler need not hear of.

    ``skipped`` of these are over; each extended every decoding log by one. ``quiet`` are left, the
    present one counted. ``stuck_at`` is the stage that was lost before the step had left it.
    """

    __slots__ = (
        "chunk_entries",
        "chunk_tokens",
        "done_s",
        "ends",
        "entries",
        "has_room",
        "is_void",
        "n_decodes",
        "n_draws",
        "quiet",
        "sent_s",
        "skipped",
        "starts",
        "step",
        "stuck_at",
    )

    def __init__(self, step: Step) -> None:
        self.step = step
        self.n_decodes = len(step.decodes)
        self.entries = sum(item.position for item in step.decodes) + self.n_decodes
        self.chunk_tokens = sum(len(chunk.tokens) for chunk in step.chunks)
        self.chunk_entries = sum(map(_entries_read, step.chunks))
        self.n_draws = sum(bool(chunk.draws) for chunk in step.chunks)
        self.quiet = self.skipped = 0
        self.has_room = True
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.sent_s = self.done_s = 0.0
        self.stuck_at: int | None = None
        self.is_void = False

    def __repr__(self) -> str:
        return f"<Flight of {self.step.id}+{self.skipped}, {self.quiet} quiet>"

    def repeat(self) -> None:
        """The same step once more, every log longer by one."""
        self.quiet -= 1
        self.skipped += 1
        self.entries += self.n_decodes

    @property
    def held_entries(self) -> int:
        """What is in the logs of its rows before it; a log's first chunk says how much that is."""
        begins = {chunk.slot: chunk.start for chunk in reversed(self.step.chunks)}
        return self.entries - self.n_decodes + sum(begins.values())

    @property
    def new_entries(self) -> int:
        return self.n_decodes + self.chunk_tokens

    def reached(self) -> Iterator[tuple[int, int, int]]:
        """(slot, sequence, length) of every log that it begins anew or extends."""
        for adopt in self.step.adopts:
            yield adopt.slot, adopt.seq, adopt.n_tokens
        for decode in self.step.decodes:
            yield decode.slot, decode.seq, decode.position + 1 + self.skipped
        for chunk in self.step.chunks:
            yield chunk.slot, chunk.seq, chunk.stop


def _entries_read(chunk: Chunk) -> float:
    n_tokens = len(chunk.tokens)
    return n_tokens * chunk.start + n_tokens * (n_tokens + 1) / 2


class Line:
    """The stages of one pipeline, when each is free, and the steps that are under way in order."""

    def __init__(
        self,
        key: int,
        figures: LineFigures,
        links: LinkFigures,
        device_slots: int | None = None,
        *,
        keeps_times: bool = True,
    ) -> None:
        """``keeps_times`` False: nobody asks when a stage computes what, and no stage is lost."""
        self.key, self.figures = key, figures
        self.timings = [stage.timing for stage in figures.stages]
        self._costs = [
            (
                *(stage.step_s, stage.step_s + each.decode_s),
                *(each.decode_row_s, each.decode_entry_s),
                *(each.chunk_s, each.prompt_token_s, each.prompt_entry_s, stage.draw_s),
            )
            for stage, each in zip(figures.stages, self.timings, strict=True)
        ]
        self._decode_costs = [costs[1:4] for costs in self._costs]
        self._n_plain = self._n_decodes = self._n_entries = 0
        self._hop_s = links.latency_s
        n_stages = len(figures.stages)
        self.free_s = [0.0] * n_stages
        self.busy_s = [0.0] * n_stages
        self.broken: set[int] = set()
        self.flights: deque[Flight] = deque()
        self.stuck: list[Flight] = []
        n_frames = frames_of(device_slots, figures.n_microbatches)
        self.pagings = [
            Paging(n_frames, figures.n_microbatches, links) for _ in range(n_stages) if n_frames
        ]
        self._is_plain = not (keeps_times or n_frames)
        self.n_sent = 0

    def send(self, flight: Flight, now: float) -> None:
        """Let a step go through all stages, behind those that are under way."""
        self.n_sent += 1
        if self.broken:
            self._stop(flight)
            return
        if self._is_plain and not flight.step.chunks and flight.n_decodes:
            self._send_decodes(flight, now)
            return
        hop_s, free_s, busy_s = self._hop_s, self.free_s, self.busy_s
        n_decodes, entries, n_chunks = flight.n_decodes, flight.entries, len(flight.step.chunks)
        flight.sent_s = now
        starts: list[float] = []
        ends: list[float] = []
        begin_s = now + hop_s
        for stage, (step_s, fixed, row, entry, *costs) in enumerate(self._costs):
            cost_s = fixed + n_decodes * row + entries * entry if n_decodes else step_s
            if n_chunks:
                chunk, token, read, draw_s = costs
                cost_s += n_chunks * chunk + flight.n_draws * draw_s
                cost_s += flight.chunk_tokens * token + flight.chunk_entries * read
            start_s = free_s[stage]
            if self.pagings:
                start_s = self._paged(stage, flight, begin_s, cost_s)
            elif begin_s > start_s:
                start_s = begin_s
            end_s = free_s[stage] = start_s + cost_s
            busy_s[stage] += cost_s
            starts.append(start_s)
            ends.append(end_s)
            begin_s = end_s + hop_s
        flight.starts, flight.ends, flight.done_s = starts, ends, begin_s
        self.flights.append(flight)

    def _send_decodes(self, flight: Flight, now: float) -> None:
        """``send`` for what nearly all steps are, with the same arithmetic and nothing noted."""
        hop_s, free_s = self._hop_s, self.free_s
        n_decodes, entries = flight.n_decodes, flight.entries
        self._n_decodes += n_decodes
        self._n_entries += entries
        self._n_plain += 1
        begin_s = now + hop_s
        for stage, (fixed, row, entry) in enumerate(self._decode_costs):
            start_s = free_s[stage]
            if begin_s > start_s:
                start_s = begin_s
            start_s += fixed + n_decodes * row + entries * entry
            free_s[stage] = start_s
            begin_s = start_s + hop_s
        flight.done_s = begin_s
        self.flights.append(flight)

    def idle_s(self, stage: int, now: float) -> float:
        """When a stage has computed what it has been sent by now."""
        for flight in reversed(self.flights):
            if flight.ends:
                left_s = flight.ends[stage - 1] if stage else flight.sent_s
                if left_s + self._hop_s <= now:
                    return max(now, flight.ends[stage])
        return now

    def busy(self) -> list[float]:
        """Seconds that each stage has computed."""
        return [
            busy_s + self._n_plain * fixed + self._n_decodes * row + self._n_entries * entry
            for busy_s, (fixed, row, entry) in zip(self.busy_s, self._decode_costs, strict=True)
        ]

    def chunk_windows(self, flight: Flight, stage: int) -> Iterator[tuple[Chunk, float, float]]:
        """When the stage computes each chunk of the step: behind the decodes, in order."""
        timing, step = self.timings[stage], flight.step
        begin_s = flight.starts[stage] + self.figures.stages[stage].step_s
        if flight.n_decodes:
            begin_s += timing.decode_s + flight.n_decodes * timing.decode_row_s
            begin_s += flight.entries * timing.decode_entry_s
        for chunk in step.chunks:
            end_s = begin_s + timing.chunk_step_s(chunk.start, len(chunk.tokens))
            yield chunk, begin_s, end_s
            begin_s = end_s

    def lose(self, stage: int, now: float) -> None:
        """A stage stops: steps that have not left it by then never will."""
        self.broken.add(stage)
        while self.flights and self.flights[-1].ends[stage] > now:
            flight = self.flights.pop()
            for later in range(stage, len(self.free_s)):
                self.busy_s[later] -= flight.ends[later] - flight.starts[later]
            flight.stuck_at = stage
            self.stuck.insert(0, flight)
        for later in range(stage, len(self.free_s)):
            self.free_s[later] = max([now, *(each.ends[later] for each in self.flights)])

    def void(self, now: float) -> list[Flight]:
        """Drop all steps; a stage that is computing one goes on to its end. What was dropped."""
        dropped = [*self.flights, *self.stuck]
        for stage in range(len(self.free_s)):
            self.free_s[stage] = max([now, *self._give_up(stage, dropped, now)])
        for paging, free_s in zip(self.pagings, self.free_s, strict=False):
            paging.clear(free_s)
        for flight in dropped:
            flight.is_void = True
        self.flights.clear()
        self.stuck.clear()
        return dropped

    def regain(self, stage: int, now: float) -> None:
        self.broken.discard(stage)
        self.free_s[stage] = now

    def _stop(self, flight: Flight) -> None:
        flight.starts, flight.ends = [], []
        flight.stuck_at = 0
        self.stuck.append(flight)

    def _give_up(self, stage: int, dropped: list[Flight], now: float) -> Iterator[float]:
        """Ends of what the stage is computing; what it would have computed later is taken back."""
        for flight in dropped:
            if not flight.ends or (flight.stuck_at is not None and stage >= flight.stuck_at):
                continue
            start_s, end_s = flight.starts[stage], flight.ends[stage]
            if start_s > now:
                self.busy_s[stage] -= end_s - start_s
            elif end_s > now:
                yield end_s

    def _paged(self, stage: int, flight: Flight, begin_s: float, cost_s: float) -> float:
        entry_bytes = self.timings[stage].entry_bytes
        step = PagedStep(
            microbatch=flight.step.microbatch,
            held_bytes=flight.held_entries * entry_bytes,
            new_bytes=flight.new_entries * entry_bytes,
            cost_s=cost_s,
        )
        return self.pagings[stage].start(step, begin_s, self.free_s[stage])
