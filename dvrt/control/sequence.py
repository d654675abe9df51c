"""One sample of a request: its known tokens, how far its log reaches, and what comes next."""

from __future__ import annotations

from dvrt.control.steps import Chunk, Decode, Fork, Open
from dvrt.requests import FinishReason, Request


class Sequence:
    """The tokens of one sample and the length of its log in the pipeline.

    ``n_logged`` counts the entries that every stage has, or will have once the step in flight is
    done. n known tokens have at most n - 1 entries unless the next token is being drawn: the last
    known position can always be computed again for its logits.
    """

    __slots__ = ("epoch", "id", "n_logged", "request", "sample", "slot", "tokens")

    def __init__(self, seq_id: int, request: Request, sample: int) -> None:
        self.id = seq_id
        self.request = request
        self.sample = sample
        self.epoch = 0
        self.tokens: list[int] = list(request.prompt_ids)
        self.n_logged = 0
        self.slot: int | None = None

    def __repr__(self) -> str:
        where = "waiting" if self.slot is None else f"slot {self.slot}"
        return f"<Sequence {self.id} {where} {self.n_logged}/{len(self.tokens)}>"

    @property
    def n_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def is_in_prompt(self) -> bool:
        return self.n_logged < self.n_prompt

    @property
    def needs_context(self) -> bool:
        return self.request.sampling.repetition_penalty != 1.0

    def open(self, slot: int) -> Open:
        """Begin the log in ``slot``, empty."""
        self.slot, self.n_logged = slot, 0
        sampling = self.request.sampling
        return Open(slot=slot, seq=self.id, epoch=self.epoch, sample=self.sample, sampling=sampling)

    def fork(self, source: int, slot: int) -> Fork:
        """Begin the log in ``slot`` with the prompt's entries, which ``source`` holds."""
        self.slot, self.n_logged = slot, self.n_prompt
        return Fork(
            source=source,
            target=slot,
            n_tokens=self.n_prompt,
            seq=self.id,
            epoch=self.epoch,
            sample=self.sample,
            sampling=self.request.sampling,
            context_ids=self.request.prompt_ids if self.needs_context else (),
        )

    def next_chunk(self, chunk_tokens: int) -> Chunk:
        """The prompt's next chunk; its end draws the first token of every sample not known yet.

        Chunks begin at multiples of ``chunk_tokens``, so that the same prompt is always computed
        by the same calls (design rule of exact mode).
        """
        start = self.n_logged
        stop = min(start - start % chunk_tokens + chunk_tokens, self.n_prompt)
        self.n_logged = stop
        draws = stop == self.n_prompt and self.n_generated == 0
        return Chunk(
            slot=self._slot(),
            seq=self.id,
            epoch=self.epoch,
            start=start,
            tokens=self.request.prompt_ids[start:stop],
            draws=tuple(range(self.request.n)) if draws else (),
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

    def _slot(self) -> int:
        assert self.slot is not None, "a sequence without a row was scheduled"
        return self.slot
