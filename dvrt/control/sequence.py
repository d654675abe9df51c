"""One sample of a request: its known tokens, where its log is, how far it reaches, what comes next.

Decides nothing: the fleet gives seats, the pipeline asks for the next operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dvrt.control.steps import Adopt, Chunk, Decode, Fork, Open, Ship
from dvrt.requests import FinishReason, Request


class Seat(NamedTuple):
    """A row: a slot of a pipeline."""

    pipeline: int
    slot: int


class Sequence:
    """The tokens of one sample and the length of its log.

    ``n_logged`` counts the entries that every stage of its pipeline has, or will have once the
    step in flight is done; ``n_done`` those that finished steps account for. n known tokens have
    at most n - 1 entries unless the next token is being drawn, so the last known position can
    always be computed again for its logits. Epochs grow over all sequences: of two logs that a
    slot was used for, the later one has the larger epoch. ``is_kept``: it comes from an earlier
    life, and what is left of its log is asked for as soon as it has a row.
    """

    __slots__ = (
        "arrived",
        "awaits",
        "due",
        "epoch",
        "firm",
        "fork_source",
        "id",
        "is_beginning",
        "is_kept",
        "must_reship",
        "n_done",
        "n_held",
        "n_logged",
        "n_prefill",
        "n_shipped",
        "request",
        "sample",
        "seat",
        "target",
        "tokens",
    )

    def __init__(self, seq_id: int, request: Request, sample: int) -> None:
        self.id = seq_id
        self.request = request
        self.sample = sample
        self.tokens: list[int] = list(request.prompt_ids)
        self.epoch = self.firm = 0
        self.n_logged = self.n_done = 0
        self.n_prefill = len(request.prompt_ids)
        self.seat: Seat | None = None
        self.is_beginning = False
        self.is_kept = False
        self.fork_source: int | None = None
        self.target: Seat | None = None
        self.n_shipped = 0
        self.must_reship = False
        self.due: float | None = None
        self.arrived: set[int] = set()
        self.awaits: dict[int, int] = {}
        self.n_held: int | None = None

    def __repr__(self) -> str:
        where = "waits" if self.seat is None else f"at {self.seat.pipeline}:{self.seat.slot}"
        to = "" if self.target is None else f" to {self.target.pipeline}:{self.target.slot}"
        return f"<Sequence {self.id}@{self.epoch} {where}{to} {self.n_logged}/{len(self.tokens)}>"

    @property
    def n_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def is_in_prompt(self) -> bool:
        """It is extended in chunks: by its prompt, or by tokens that were known before a loss."""
        return self.n_logged < self.n_prefill

    @property
    def is_settled(self) -> bool:
        """Its row holds all entries of the prompt, and steps know the log by its name."""
        return not (self.is_in_prompt or self.is_beginning or self.awaits)

    @property
    def owes_ship(self) -> bool:
        """Entries that it has are yet to be sent to where it is going."""
        return self.target is not None and self.n_shipped < self.n_logged

    # Where it sits.

    def sit(self, seat: Seat, epoch: int, fork_source: int | None = None) -> None:
        """Take a row; the log begins there, empty or with a sibling's prompt, in the next step."""
        self.seat, self.epoch, self.fork_source = seat, epoch, fork_source
        self.n_logged = 0 if fork_source is None else self.n_prompt
        self.n_done = self.n_shipped = 0
        self.is_beginning = True

    def head_for(self, target: Seat) -> None:
        """Have a row set aside elsewhere; what is logged already must be sent there."""
        self.target = target
        self.n_shipped = 0
        self.arrived.clear()
        self.must_reship = self.n_logged > 0

    def stay(self) -> Seat | None:
        """Give up the row that was set aside."""
        target, self.target = self.target, None
        self.n_shipped = 0
        self.must_reship, self.due = False, None
        self.arrived.clear()
        return target

    def move(self) -> None:
        """Go on at the target, where all that is logged has arrived."""
        self.seat, self.target = self.target, None
        self.n_done = self.n_logged
        self.n_shipped = 0
        self.n_held = self.due = None
        self.arrived.clear()
        self.awaits.clear()
        self.is_beginning = True

    def unseat(self, epoch: int) -> None:
        """Lose the row and the log; the known tokens remain and will be computed again."""
        self.seat, self.epoch = None, epoch
        self.n_logged = self.n_done = self.n_shipped = 0
        self.is_beginning = False
        self.fork_source = self.n_held = None
        self.awaits.clear()

    def prefill_known(self) -> None:
        """Take what is known, but for the last token, in chunks: fewer calls, but other ones than
        those that computed it first.
        """
        self.n_prefill = max(self.n_prompt, len(self.tokens) - 1)

    def resume(self, length: int, epoch: int) -> None:
        """Go on from the first ``length`` entries, which every stage has."""
        self.epoch, self.fork_source, self.must_reship, self.due = epoch, None, False, None
        self.n_logged = self.n_done = length
        self.n_shipped = 0
        self.n_held = None
        self.arrived.clear()
        self.is_beginning = True

    def know(self, tokens: Iterable[int]) -> None:
        """These were drawn in an earlier life, which may have left the log as well."""
        self.tokens += tokens
        self.is_kept = True
        self.firm = len(self.tokens) - 1

    def expect(self, tickets: Mapping[int, int]) -> None:
        """In its row; each of these stages says under its ticket what it has of the log."""
        self.is_kept = False
        self.n_logged = self.n_done = len(self.tokens) - 1
        self.awaits.update(tickets)

    def inherit(self, other: Sequence, epoch: int) -> None:
        """Take the rows of a sibling that ends; the prompt's entries stay where they are."""
        assert other.seat is not None
        self.seat, self.target, self.epoch = other.seat, other.target, epoch
        self.fork_source, self.is_beginning = other.seat.slot, True
        self.n_logged = self.n_prompt
        self.n_done = self.n_shipped = 0

    # What comes next.

    def restart_shipping(self, epoch: int) -> None:
        """Send everything again, under a new epoch that the next step opens."""
        self.epoch, self.is_beginning, self.must_reship = epoch, True, False
        self.n_shipped, self.due = 0, None
        self.arrived.clear()

    def begin(self) -> Open | Adopt | Fork:
        """The operation that opens the log in its row."""
        self.is_beginning = False
        source, self.fork_source = self.fork_source, None
        slot, sampling = self._slot(), self.request.sampling
        if source is not None:
            return Fork(
                source=source,
                target=slot,
                n_tokens=self.n_logged,
                seq=self.id,
                epoch=self.epoch,
                sample=self.sample,
                sampling=sampling,
                context_ids=self._context(),
            )
        if not self.n_logged:
            return Open(
                slot=slot, seq=self.id, epoch=self.epoch, sample=self.sample, sampling=sampling
            )
        return Adopt(
            slot=slot,
            seq=self.id,
            epoch=self.epoch,
            n_tokens=self.n_logged,
            sample=self.sample,
            sampling=sampling,
            context_ids=self._context(),
        )

    def ship(self) -> Ship:
        """Send all that is logged to the target; it is complete there unless prompt is left."""
        assert self.target is not None
        self.n_shipped = self.n_logged
        return Ship(
            slot=self._slot(),
            seq=self.id,
            epoch=self.epoch,
            stop=self.n_logged,
            to=self.target.pipeline,
            target=self.target.slot,
            commits=not self.is_in_prompt,
        )

    def next_chunk(self, chunk_tokens: int) -> Chunk:
        """The prompt's next chunk; its end draws the first token of every sample not known yet.

        Chunks begin at multiples of ``chunk_tokens``, so that the same prompt is always computed
        by the same calls (design rule of exact mode).
        """
        start = self.n_logged
        stop = min(start - start % chunk_tokens + chunk_tokens, self.n_prefill)
        self.n_logged = stop
        if self.target is not None:
            self.n_shipped = stop
        draws = stop == self.n_prompt and self.n_generated == 0
        return Chunk(
            slot=self._slot(),
            seq=self.id,
            epoch=self.epoch,
            start=start,
            tokens=tuple(self.tokens[start:stop]),
            draws=tuple(range(self.request.n)) if draws else (),
            to=self.target.pipeline if self.target is not None else None,
            target=self.target.slot if self.target is not None else 0,
            commits=self.target is not None and stop == self.n_prefill,
        )

    def next_decode(self) -> Decode:
        """The next known token; draws only when the one after it is not known yet."""
        position = self.n_logged
        self.n_logged = position + 1
        return Decode(
            slot=self._slot(),
            seq=self.id,
            epoch=self.epoch,
            position=position,
            token=self.tokens[position],
            draw=self.n_logged == len(self.tokens),
        )

    def append(self, token: int) -> FinishReason | None:
        """Take a drawn token; the reason if the sample ends with it."""
        self.tokens.append(token)
        if token in self.request.eos_ids:
            return FinishReason.EOS
        if token in self.request.stop_ids:
            return FinishReason.STOP
        if self.n_generated >= self.request.max_tokens:
            return FinishReason.LENGTH
        return None

    def _context(self) -> tuple[int, ...]:
        if self.request.sampling.repetition_penalty == 1.0:
            return ()
        return tuple(self.tokens[: self.n_logged])

    def _slot(self) -> int:
        assert self.seat is not None, "a sequence without a row was scheduled"
        return self.seat.slot
