"""The engine: what ``async with dvrt.launch(...)`` gives; prompts in, tokens and completions out.

Turns text into token ids and back, options into a Request, and emits into Tokens. Decides nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from dvrt.cluster.controller import Controller
from dvrt.cluster.plan import Split
from dvrt.cluster.sameness import ensure_same
from dvrt.cluster.stream import RequestStream
from dvrt.control.events import Emit
from dvrt.errors import ConfigError, DvrtError, RequestRejected, StageFailed
from dvrt.models.spec import GenerationDefaults
from dvrt.observe.events import Record
from dvrt.requests import FinishReason, Request, SamplingParams
from dvrt.results import Completion, ModelCard, Sample, Status, Timings, Token

if TYPE_CHECKING:
    from dvrt.cluster.journal_store import Asked
    from dvrt.models.text import TextCodec, TextStream
    from dvrt.observe.metrics import Metrics

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """The keyword options of ``generate`` and ``complete``.

    None means: ``max_tokens`` what fits the context, at most 256; sampling values what the
    checkpoint's generation_config.json says, else temperature 1; ``seed`` a random one.
    ``stop`` are strings (one or several), ``stop_ids`` token ids; ``ignore_eos`` goes on after the
    model's own end. ``deadline_s`` counts from submission. With a journal, a request that
    ``lingers`` goes on for the option ``reattach`` when its consumer leaves, for ``resume``.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logprobs: int | None = None
    n: int = 1
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    deadline_s: float | None = None
    request_id: str | None = None
    lingers: bool = False

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def __post_init__(self) -> None:
        """Raise RequestRejected for stops and ids of the wrong type; Request checks the numbers."""
        if not isinstance(self.stop, str) and not _are_all(self.stop, str):
            text = f"stop is {self.stop!r}; expected a string or a list of them"
            raise RequestRejected(text, param="stop")
        if not all(self.stop_strings):
            raise RequestRejected("a stop string is empty", param="stop")
        if not _are_all(self.stop_ids, int):
            text = f"stop_ids is {self.stop_ids!r}; expected a list of token ids"
            raise RequestRejected(text, param="stop_ids")
        if not _is(self.request_id, str | None):
            text = f"request_id is {self.request_id!r}; expected a string"
            raise RequestRejected(text, param="request_id")


class Engine:
    """A running cluster. Made by ``dvrt.launch``; usable from the loop that launched it."""

    def __init__(
        self,
        *,
        controller: Controller,
        card: ModelCard,
        defaults: GenerationDefaults,
        text: TextCodec | None,
        metrics: Metrics,
    ) -> None:
        self.model = card
        self.text = text
        self.metrics = metrics
        self._controller = controller
        self._defaults = defaults

    async def generate(
        self, prompt: str | Sequence[int], **options: Any
    ) -> AsyncGenerator[Token, None]:
        """The tokens of a request as they come, samples interleaved when ``n`` is above 1.

        Keyword options are those of GenerateOptions. Raises RequestRejected (Overloaded when the
        queue is full, Unavailable when the cluster cannot serve) before the first token, and
        StageFailed when the cluster fails midway. Closing the generator cancels the request and
        frees its rows.
        """
        chosen = _options(options)
        stream = self._submit(self._request(prompt, chosen), chosen)
        try:
            async with aclosing(self._tokens(stream, chosen.stop_strings)) as tokens:
                async for token in tokens:
                    yield token
        finally:
            self._controller.leave(stream)

    async def resume(
        self,
        request_id: str,
        *,
        from_index: int = 0,
        prompt_ids: Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Token, None]:
        """The tokens of a request that the journal keeps, each sample's from ``from_index`` on:
        those that were drawn already, and then, if it still runs, the others as they come.

        Any number of consumers may read the same request, also when the one who asked for it is
        gone, or has another life of the controller behind it. ``prompt_ids`` and ``options``, those
        of ``generate``, say what it should have been; a seed counts only if it is given. Raises
        RequestRejected for a request that is not known (code ``unknown_request``) or that was made
        with others (``idempotency_mismatch``).
        """
        stream = await self._controller.find(request_id)
        if stream is None:
            raise RequestRejected(
                f"request {request_id!r} is not known here, or not any more",
                param="request_id",
                code="unknown_request",
            )
        try:
            self._ensure_same(stream.asked, prompt_ids, options)
            async with aclosing(self._tokens(stream, stream.asked.stop)) as tokens:
                async for token in tokens:
                    if token.index >= from_index:
                        yield token
        finally:
            self._controller.leave(stream)

    async def knows(self, request_id: str) -> bool:
        """Whether ``resume`` gives this request's answer: it runs, or has ended of itself."""
        stream = await self._controller.find(request_id)
        if stream is not None:
            self._controller.leave(stream)
        return stream is not None and not stream.is_spoiled

    @property
    def is_journalled(self) -> bool:
        """Whether requests are written down, for ``resume`` and for a launch that follows."""
        return self._controller.is_journalled

    async def complete(self, prompt: str | Sequence[int], **options: Any) -> Completion:
        """The finished request. Raises as ``generate`` does; cancelling it cancels the request."""
        chosen = _options(options)
        request = self._request(prompt, chosen)
        stream = self._submit(request, chosen)
        try:
            tokens = [token async for token in self._tokens(stream, chosen.stop_strings)]
        finally:
            self._controller.leave(stream)
        return _completion(request, tokens, stream.timings())

    def status(self) -> Status:
        """The cluster now: workers with their layers and states, queue and rows."""
        return self._controller.status()

    def events(self) -> tuple[Record, ...]:
        """What happened so far: workers, stages and requests that changed state, and why."""
        return self._controller.events()

    def is_healthy(self) -> bool:
        """True only while all stages are there and, if they have work, make progress."""
        return self._controller.is_healthy()

    async def wait_over(self) -> DvrtError:
        """Return why, when the cluster has failed or was stopped and serves no more.

        Cancelling the wait changes nothing.
        """
        return await self._controller.wait_over()

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests and wait, ``limit_s`` at most, until the running ones have ended."""
        await self._controller.drain(limit_s)

    async def rebalance(
        self,
        *,
        prompt_stages: int | None = None,
        token_stages: int | None = None,
        stages: int | None = None,
    ) -> None:
        """Change the split while serving: ``prompt_stages`` and ``token_stages``, or ``stages``.

        Requests go on; each is served by the new stages as soon as its log is there. Returns when
        the former stages are closed; cancelling the wait does not stop the change. Raises
        ConfigError for a split that cannot be, Unavailable when it cannot be changed now, and
        StageFailed when a worker was lost before the new stages were ready and nothing changed.
        """
        split = Split.of(stages=stages, prompt_stages=prompt_stages, token_stages=token_stages)
        await self._controller.rebalance(split)

    def _submit(self, request: Request, options: GenerateOptions) -> RequestStream:
        return self._controller.submit(request, stop=options.stop_strings, lingers=options.lingers)

    async def _tokens(
        self, stream: RequestStream, stop: tuple[str, ...]
    ) -> AsyncGenerator[Token, None]:
        texts = [] if self.text is None else [self.text.stream(stop) for _ in stream.samples]
        async for emit in stream:
            text = texts[emit.sample] if texts else None
            if text is not None and text.stopped:
                continue
            piece = _piece(emit, text)
            if text is not None and text.stopped:
                self._cancel(stream, emit.sample)
                yield _token(emit, piece, FinishReason.STOP)
            elif emit.finish is FinishReason.ERROR:
                raise DvrtError(f"request {stream.request.id}: {emit.error}")
            else:
                yield _token(emit, piece, emit.finish)

    def _cancel(self, stream: RequestStream, sample: int) -> None:
        """A sample's text has met a stop string. The id of a request that has ended may be
        another's by now."""
        if not stream.is_ended:
            self._controller.cancel(stream.request.id, sample=sample, reason=FinishReason.STOP)

    def _ensure_same(
        self, asked: Asked, prompt_ids: Sequence[int] | None, options: Mapping[str, Any] | None
    ) -> None:
        prompt = asked.request.prompt_ids if prompt_ids is None else self._prompt_ids(prompt_ids)
        if options is None:
            ensure_same(asked, replace(asked.request, prompt_ids=prompt), stop=asked.stop)
            return
        chosen = _options({**options, "request_id": asked.request.id})
        again = self._request(prompt, chosen)
        is_seeded = chosen.seed is not None
        ensure_same(asked, again, stop=chosen.stop_strings, is_seeded=is_seeded)

    def _request(self, prompt: str | Sequence[int], options: GenerateOptions) -> Request:
        ids = self._prompt_ids(prompt)
        if options.stop_strings and self.text is None:
            raise RequestRejected("stop strings need a tokenizer; use stop_ids", param="stop")
        return Request(
            id=options.request_id or secrets.token_hex(12),
            prompt_ids=ids,
            max_tokens=self._max_tokens(len(ids), options.max_tokens),
            sampling=self._sampling(options),
            n=options.n,
            eos_ids=() if options.ignore_eos else self._defaults.eos_ids,
            stop_ids=tuple(options.stop_ids),
            deadline_s=options.deadline_s,
        )

    def _prompt_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self.text is None:
                raise RequestRejected(
                    f"{self.model.name} has no tokenizer; send token ids", param="prompt"
                )
            return tuple(self.text.encode(prompt))
        if not _is(prompt, Iterable) or _is(prompt, bytes | bytearray | Mapping):
            text = f"prompt is {type(prompt).__name__}; expected a string or token ids"
            raise RequestRejected(text, param="prompt")
        ids = tuple(prompt)
        wrong = [i for i in ids if type(i) is not int]
        if wrong:
            raise RequestRejected(f"{wrong[0]!r} is not a token id", param="prompt")
        return ids

    def _max_tokens(self, n_prompt: int, wanted: int | None) -> int:
        room = self.model.max_context - n_prompt
        return wanted if wanted is not None else max(1, min(DEFAULT_MAX_TOKENS, room))

    def _sampling(self, options: GenerateOptions) -> SamplingParams:
        chosen: dict[str, Any] = {}
        for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
            for value in (getattr(self._defaults, name), getattr(options, name)):
                if value is not None:
                    chosen[name] = value
        seed = options.seed if options.seed is not None else secrets.randbits(63)
        return SamplingParams(seed=seed, logprobs=options.logprobs, **chosen)


def _is(value: Any, kind: Any) -> bool:
    """Whether it is one; callers may not heed the annotations."""
    return isinstance(value, kind)


def _are_all(values: Any, kind: Any) -> bool:
    """Whether this is a collection of such values."""
    is_some = isinstance(values, list | tuple | set | frozenset)
    return is_some and all(isinstance(value, kind) for value in values)


def _options(options: dict[str, Any]) -> GenerateOptions:
    known = {f.name for f in fields(GenerateOptions)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return GenerateOptions(**options)


def _piece(emit: Emit, text: TextStream | None) -> str:
    """The text that becomes certain with an emit; all that was held back when it is the last."""
    if text is None:
        return ""
    hides_last = emit.finish in (FinishReason.EOS, FinishReason.STOP) and emit.token is not None
    piece = "" if emit.token is None or hides_last else text.push(emit.token.id)
    if emit.finish is not None and not text.stopped:
        piece += text.finish()
    return piece


def _token(emit: Emit, piece: str, finish: FinishReason | None) -> Token:
    drawn = emit.token
    return Token(
        id=drawn.id if drawn is not None else -1,
        text=piece,
        index=emit.index,
        sample=emit.sample,
        logprob=drawn.logprob if drawn is not None else None,
        alternatives=drawn.alternatives if drawn is not None else (),
        finish_reason=finish,
    )


def _completion(request: Request, tokens: list[Token], timings: Timings) -> Completion:
    return Completion(
        request_id=request.id,
        n_prompt_tokens=len(request.prompt_ids),
        samples=tuple(
            _sample([token for token in tokens if token.sample == i]) for i in range(request.n)
        ),
        timings=timings,
    )


def _sample(tokens: list[Token]) -> Sample:
    if not tokens or tokens[-1].finish_reason is None:
        raise StageFailed("pipeline", text := "a sample ended without a reason", text=text)
    return Sample(
        token_ids=tuple(token.id for token in tokens if token.id >= 0),
        text="".join(token.text for token in tokens),
        finish_reason=tokens[-1].finish_reason,
        tokens=tuple(tokens),
    )
