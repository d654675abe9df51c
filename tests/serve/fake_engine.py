"""An engine as the HTTP side sees it, whose every token is a known function of its prompt.

Rows, a bounded queue, refusals, stop strings, cancellation and failure behave as in the real one.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from dvrt.errors import DvrtError, Overloaded, RequestRejected, Unavailable
from dvrt.observe.metrics import Metrics
from dvrt.requests import FinishReason, Request, SamplingParams
from dvrt.results import ModelCard, Status, Token, WorkerStatus

EOS = 256
VOCAB_SIZE = 260
ALPHABET = "etaoin shrdlu éñ漢🙂.".encode()


def expected_ids(prompt: Sequence[int], n: int, *, sample: int = 0, seed: int = 0) -> list[int]:
    """The tokens of an undisturbed sample: whole UTF-8 characters, picked by hash, cut at ``n``."""
    letters = list(ALPHABET.decode())
    ids: list[int] = []
    step = 0
    while len(ids) < n:
        key = repr((list(prompt), sample, seed, step)).encode()
        digest = hashlib.blake2b(key, digest_size=2).digest()
        ids += letters[int.from_bytes(digest) % len(letters)].encode()
        step += 1
    return ids[:n]


def expected_text(prompt: str | Sequence[int], n: int, **options: int) -> str:
    ids = prompt.encode() if isinstance(prompt, str) else prompt
    return ByteCodec().decode(expected_ids(list(ids), n, **options))


class ByteCodec:
    """One token a byte; 256 ends a text and has none."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < EOS).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < EOS else b""

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        text = "".join(f"<{one['role']}>{one['content']}" for one in messages)
        return self.encode(text + "<assistant>")


class _Text:
    """One sample's text: characters whole, stop strings held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, id_: int) -> str:
        self._held += self._decoder.decode(bytes([id_]))
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._say(min(found))
        open_length = max(
            (
                length
                for stop in self._stop
                for length in range(1, len(stop))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )
        return self._say(len(self._held) - open_length)

    def finish(self) -> str:
        return self._held + self._decoder.decode(b"", final=True)

    def _say(self, length: int) -> str:
        said, self._held = self._held[:length], self._held[length:]
        return said


class FakeEngine:
    """``rows`` requests run at once, ``queue`` more may wait; a token takes ``step_s``.

    ``go`` holds all tokens back while it is clear. ``failure`` is raised after ``fail_after``
    tokens, ``eos_after`` ends samples early. ``began``, ``ended`` and ``cancelled`` hold request
    ids; ``options`` what each was asked for.
    """

    def __init__(
        self,
        *,
        rows: int = 8,
        queue: int = 1000,
        step_s: float = 0.0,
        max_context: int = 512,
        has_tokenizer: bool = True,
    ) -> None:
        self.model = ModelCard(
            name="fake/model",
            family="fake",
            n_layers=4,
            vocab_size=VOCAB_SIZE,
            max_context=max_context,
            has_tokenizer=has_tokenizer,
        )
        self.text = ByteCodec() if has_tokenizer else None
        self.metrics = Metrics()
        self.go = asyncio.Event()
        self.go.set()
        self.failure: Exception | None = None
        self.fail_after = 0
        self.eos_after: int | None = None
        self.healthy = True
        self.draining = False
        self.began: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.options: dict[str, dict[str, Any]] = {}
        self._rows = asyncio.Semaphore(rows)
        self._n_rows, self._queue_limit, self._step_s = rows, queue, step_s
        self.open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def generate(
        self, prompt: str | Sequence[int], **options: Any
    ) -> AsyncGenerator[Token, None]:
        request = self._request(prompt, options)
        self._let_in(request, options)
        try:
            async with self._rows:
                async for token in self._tokens(request, options):
                    yield token
            self.ended.append(request.id)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.append(request.id)
            raise
        finally:
            self.open -= 1
            if not self.open:
                self._idle.set()

    is_journalled = False

    def status(self) -> Status:
        worker = WorkerStatus(
            name="w0", pid=1, role="both", stage=0, layers=(0, 4), state="ready", device="null"
        )
        return Status(
            model=self.model.name,
            state="draining" if self.draining else "serving",
            workers=(worker,),
            n_queued=max(0, self.open - self._n_rows),
            n_running=min(self.open, self._n_rows),
            n_rows=self._n_rows,
            n_finished=len(self.ended),
            uptime_s=1.0,
        )

    def is_healthy(self) -> bool:
        return self.healthy

    async def drain(self, limit_s: float) -> None:
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), limit_s)
        except TimeoutError:
            pass

    async def wait_open(self, n: int) -> None:
        """Until exactly ``n`` requests are inside."""
        async with asyncio.timeout(10):
            while self.open != n:
                await asyncio.sleep(0.002)

    def _request(self, prompt: str | Sequence[int], options: dict[str, Any]) -> Request:
        if isinstance(prompt, str):
            assert self.text is not None
            prompt = self.text.encode(prompt)
        if options.get("stop") and self.text is None:
            raise RequestRejected("stop strings need a tokenizer; use stop_ids", param="stop")
        sampled = ("temperature", "top_k", "top_p", "repetition_penalty", "logprobs", "seed")
        given = {key: options[key] for key in sampled if options.get(key) is not None}
        limit = options.get("max_tokens") or min(256, self.model.max_context - len(prompt))
        request = Request(
            id=options.get("request_id") or secrets.token_hex(4),
            prompt_ids=tuple(prompt),
            max_tokens=max(1, limit),
            sampling=SamplingParams(**given),
            n=options.get("n", 1),
            stop_ids=tuple(options.get("stop_ids", ())),
            deadline_s=options.get("deadline_s"),
        )
        if len(prompt) + request.max_tokens > self.model.max_context:
            raise RequestRejected(
                f"{len(prompt)} prompt tokens and {request.max_tokens} new ones do not fit a "
                f"context of {self.model.max_context}",
                param="prompt",
                code="context_length_exceeded",
            )
        return request

    def _let_in(self, request: Request, options: dict[str, Any]) -> None:
        if self.draining:
            raise Unavailable("the cluster is draining")
        if self.open >= self._n_rows + self._queue_limit:
            raise Overloaded("the queue is full", retry_after_s=0.25)
        assert request.id not in self.options
        self.options[request.id] = options
        self.began.append(request.id)
        self.open += 1
        self._idle.clear()

    async def _tokens(
        self, request: Request, options: dict[str, Any]
    ) -> AsyncGenerator[Token, None]:
        stop = options.get("stop", ())
        strings = [stop] if isinstance(stop, str) else list(stop)
        texts = [_Text(strings) for _ in range(request.n)]
        plans = [self._plan(request, options, sample) for sample in range(request.n)]
        running = set(range(request.n))
        for index in range(request.max_tokens):
            await self._step(index)
            for sample in sorted(running):
                token = self._token(request, plans[sample], texts[sample], index, sample)
                if token.finish_reason is not None:
                    running.discard(sample)
                yield token
            if not running:
                return

    async def _step(self, index: int) -> None:
        await self.go.wait()
        await asyncio.sleep(self._step_s)
        if self.failure is not None and index >= self.fail_after:
            raise self.failure

    def _plan(self, request: Request, options: dict[str, Any], sample: int) -> list[int]:
        n, seed = request.max_tokens, options.get("seed") or 0
        ids = expected_ids(request.prompt_ids, n, sample=sample, seed=seed)
        if self.eos_after is not None and not options.get("ignore_eos"):
            ids = [*ids[: self.eos_after], EOS][:n]
        return ids

    def _token(
        self, request: Request, plan: list[int], text: _Text, index: int, sample: int
    ) -> Token:
        id_ = plan[index]
        finish, piece = None, ""
        if id_ == EOS:
            finish = FinishReason.EOS
        elif id_ in request.stop_ids:
            finish = FinishReason.STOP
        else:
            piece = text.push(id_)
            finish = FinishReason.STOP if text.stopped else None
        if finish is None and index + 1 == request.max_tokens:
            finish = FinishReason.LENGTH
        if finish is not None and not text.stopped:
            piece += text.finish()
        wanted = request.sampling.logprobs
        return Token(
            id=id_,
            text=piece if self.text is not None else "",
            index=index,
            sample=sample,
            logprob=None if wanted is None else -0.5,
            alternatives=tuple((65 + i, -1.0 - i) for i in range(wanted or 0)),
            finish_reason=finish,
        )


class BrokenEngine(FakeEngine):
    """Has a bug: raises something that is no error of dvrt's."""

    def _let_in(self, request: Request, options: dict[str, Any]) -> None:
        raise KeyError("a bug")


class EngineFault(DvrtError):
    """Some error of dvrt's that is nobody's fault outside."""
