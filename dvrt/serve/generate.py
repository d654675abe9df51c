"""The two generating endpoints, from a parsed body to the last byte of the answer."""

from __future__ import annotations

import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from dvrt.errors import DvrtError, RequestRejected, Unavailable
from dvrt.requests import FinishReason
from dvrt.results import Token
from dvrt.serve.body import read_json
from dvrt.serve.calls import Calls
from dvrt.serve.limits import HttpLimits
from dvrt.serve.prompts import encode_chat, encode_prompts, split_prompts
from dvrt.serve.refusal import Refusal
from dvrt.serve.reply import Reply, to_json
from dvrt.serve.schema import GenerateBody, parse_chat, parse_completion
from dvrt.serve.served import Served
from dvrt.serve.shapes import ChatShape, CompletionShape, Shape
from dvrt.serve.tickets import Places, Ticket, read_ticket
from dvrt.serve.tokens import Usage, merged

logger = logging.getLogger("dvrt.serve")

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; chats have none of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one body asks for: ``prompts`` times ``n`` choices."""

    call_id: str
    prompts: Sequence[Sequence[int]]
    options: Sequence[dict[str, Any]]
    n: int
    is_stream: bool
    shape: Shape
    ticket: Ticket | None

    def usage(self) -> Usage:
        return Usage(n_prompt=sum(len(prompt) for prompt in self.prompts))


class GenerateEndpoint(ABC):
    """An ASGI application that answers one path. Subclasses turn its body into a Call."""

    def __init__(self, engine: Served, calls: Calls, limits: HttpLimits) -> None:
        self._engine = engine
        self._calls = calls
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send, request_id=scope["state"]["request_id"])
        try:
            ticket = read_ticket(scope) if self._engine.is_journalled else None
            body = await read_json(receive, self._limits)
            await self._calls.run(receive, self._answer(body, reply, ticket))
        except ClientDisconnect:
            self._engine.metrics.http_hang_up()
        except RequestRejected as error:
            await reply.fail(error)
        except DvrtError as error:
            logger.warning("request %s failed: %s", scope["state"]["request_id"], error)
            await reply.fail(error)
        except Exception as error:
            logger.exception("request %s failed", scope["state"]["request_id"])
            await reply.fail(error)

    @abstractmethod
    async def _call(self, body: dict[str, Any], ticket: Ticket | None) -> Call:
        """Raises RequestRejected for a body that cannot be served."""

    async def _answer(self, body: dict[str, Any], reply: Reply, ticket: Ticket | None) -> None:
        call = await self._call(body, ticket)
        streams = [
            await self._tokens(prompt, options, ticket)
            for prompt, options in zip(call.prompts, call.options, strict=True)
        ]
        async with aclosing(merged(streams)) as tokens:
            await (_stream if call.is_stream else _collect)(call, tokens, reply)

    async def _tokens(
        self, prompt: Sequence[int], options: dict[str, Any], ticket: Ticket | None
    ) -> AsyncGenerator[Token, None]:
        """A new request, or the one that the client has named before."""
        if ticket is None:
            return self._engine.generate(prompt, **options)
        request_id = options["request_id"]
        if await self._engine.knows(request_id):
            return self._engine.resume(request_id, prompt_ids=prompt, options=options)
        if ticket.seen is not None:
            text = f"the request {ticket.key!r} is not known here, or not any more"
            raise Refusal(404, text, param="Last-Event-ID", code="unknown_request")
        return self._engine.generate(prompt, **options, lingers=True)

    def _check_model(self, wanted: str | None) -> None:
        if wanted not in (None, self._engine.model.name):
            raise unknown_model(str(wanted), self._engine)

    def _check_choices(self, n_prompts: int, n: int) -> None:
        if n_prompts * n > self._limits.max_choices:
            text = f"{n_prompts} prompts times n = {n} are more than {self._limits.max_choices}"
            raise Refusal(400, text, param="n" if n > 1 else "prompt", code="too_many_choices")

    def _shape_values(self, call_id: str, body: GenerateBody) -> dict[str, Any]:
        options = body.stream_options
        return {
            "call_id": call_id,
            "model": self._engine.model.name,
            "created": int(time.time()),
            "codec": self._engine.text,
            "shows_logprobs": body.engine_options()["logprobs"] is not None,
            "shows_ids": body.return_token_ids or self._engine.text is None,
            "tells_usage": options is not None and options.include_usage,
        }


class CompletionEndpoint(GenerateEndpoint):
    """POST /v1/completions."""

    async def _call(self, body: dict[str, Any], ticket: Ticket | None) -> Call:
        parsed = parse_completion(body)
        self._check_model(parsed.model)
        given = split_prompts(parsed.prompt)
        self._check_choices(len(given), parsed.n)
        prompts = await encode_prompts(self._engine, given)
        echoes = self._echoes(given, parsed.n) if parsed.echo else ()
        call_id = _call_id("cmpl", ticket)
        return Call(
            call_id=call_id,
            prompts=prompts,
            options=[
                self._options(parsed, prompt, f"{call_id}-{i}") for i, prompt in enumerate(prompts)
            ],
            n=parsed.n,
            is_stream=parsed.stream,
            shape=CompletionShape(echoes=echoes, **self._shape_values(call_id, parsed)),
            ticket=ticket,
        )

    def _options(self, body: GenerateBody, prompt: list[int], request_id: str) -> dict[str, Any]:
        options = {**body.engine_options(), "request_id": request_id}
        if options["max_tokens"] is None:
            room = self._engine.model.max_context - len(prompt)
            options["max_tokens"] = max(1, min(COMPLETION_MAX_TOKENS, room))
        return options

    def _echoes(self, prompts: Sequence[str | list[int]], n: int) -> list[str]:
        codec = self._engine.text
        texts = [
            prompt if isinstance(prompt, str) else codec.decode(prompt) if codec else ""
            for prompt in prompts
        ]
        return [text for text in texts for _ in range(n)]


class ChatEndpoint(GenerateEndpoint):
    """POST /v1/chat/completions."""

    async def _call(self, body: dict[str, Any], ticket: Ticket | None) -> Call:
        parsed = parse_chat(body)
        self._check_model(parsed.model)
        self._check_choices(1, parsed.n)
        prompt = await encode_chat(self._engine, parsed)
        call_id = _call_id("chatcmpl", ticket)
        return Call(
            call_id=call_id,
            prompts=[prompt],
            options=[{**parsed.engine_options(), "request_id": call_id}],
            n=parsed.n,
            is_stream=parsed.stream,
            shape=ChatShape(**self._shape_values(call_id, parsed)),
            ticket=ticket,
        )


def _call_id(kind: str, ticket: Ticket | None) -> str:
    return f"{kind}-{secrets.token_hex(12)}" if ticket is None else ticket.call_id(kind)


def unknown_model(name: str, engine: Served) -> Refusal:
    text = f"the model {name[:200]!r} is not served here; {engine.model.name!r} is"
    return Refusal(404, text, param="model", code="model_not_found")


Tokens = AsyncGenerator[tuple[int, Token], None]


async def _collect(call: Call, tokens: Tokens, reply: Reply) -> None:
    choices: list[list[Token]] = [[] for _ in range(len(call.prompts) * call.n)]
    usage = call.usage()
    async for number, token in tokens:
        _check_alive(token)
        usage.count(token)
        choices[number * call.n + token.sample].append(token)
    shape = call.shape
    whole = [shape.whole_choice(index, one) for index, one in enumerate(choices)]
    await reply.whole(to_json(shape.whole(whole, usage.as_json())))


async def _stream(call: Call, tokens: Tokens, reply: Reply) -> None:
    """Begins with the first token: until then an error still has a status of its own."""
    shape, usage = call.shape, call.usage()
    places = Places(len(call.prompts) * call.n, call.ticket)
    opened: set[int] = set()
    async for number, token in tokens:
        _check_alive(token)
        usage.count(token)
        index = number * call.n + token.sample
        if places.was_told(index, token):
            opened.add(index)
            shape.chunk_choice(index, token)  # so that what follows is counted from there
            continue
        chunks = []
        if index not in opened:
            opened.add(index)
            opening = shape.opening(index)
            chunks += [shape.chunk([opening])] if opening is not None else []
        if shape.says_something(token):
            chunks.append(shape.chunk([shape.chunk_choice(index, token)]))
        if chunks:
            await reply.events(chunks, event_id=places.event_id)
    if shape.tells_usage:
        await reply.events([shape.chunk([], usage.as_json())])
    await reply.events([])
    await reply.end_events()


def _check_alive(token: Token) -> None:
    """Nobody but the server cancels a request whose client is still here."""
    if token.finish_reason is FinishReason.CANCELLED:
        raise Unavailable("the request was cancelled by the server; please send it again")
