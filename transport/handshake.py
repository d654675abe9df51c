"""Who is there: both sides prove that they know the secret, then say what they are.

    client                                   server
      Opening(protocol, nonce)        ->
                                      <-     Challenge(nonce, proof)
      Identity(hello, proof)          ->
                                      <-     Accepted(hello, proof)  or  Refused(field, ...)

A proof is HMAC-SHA256 over its role, both nonces and the hellos said so far. Nothing is encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from collections.abc import Callable, Iterator
from typing import TypeVar

from dvrt.errors import ConfigError, ConnectFailed, Corrupted, PeerLost, TransferTimeout, WireError
from dvrt.transport.base import Channel, Limits
from dvrt.wire import Message, decode, encode, message

PROTOCOL_VERSION = 1
NONCE_BYTES = 32
STRANGER_LIMITS = Limits(max_header_bytes=64 << 10, max_regions=0, max_region_bytes=0)
"""What a channel accepts from a peer that has not proved itself."""


@message("transport.hello")
class Hello(Message):
    """What a node says of itself.

    ``incarnation`` differs each time the node starts. ``description`` holds what both sides must
    agree on, such as layouts and dtypes: a key that both have must have one value, unless
    ``welcome`` is given a check of its own.
    """

    node: str
    incarnation: str
    role: str
    protocol_version: int = PROTOCOL_VERSION
    description: dict[str, str]


@message("transport.opening")
class Opening(Message):
    protocol_version: int
    nonce: bytes


@message("transport.challenge")
class Challenge(Message):
    nonce: bytes
    proof: bytes


@message("transport.identity")
class Identity(Message):
    hello: Hello
    proof: bytes


@message("transport.accepted")
class Accepted(Message):
    hello: Hello
    proof: bytes


@message("transport.refused")
class Refused(Message):
    field: str
    expected: str
    got: str


Check = Callable[[Hello], None]
M = TypeVar("M")


async def greet(channel: Channel, *, hello: Hello, secret: bytes, deadline_s: float) -> Hello:
    """The client's side, right after connect; returns the server's hello.

    Raises Corrupted naming the field in which the two sides differ, ConnectFailed when the peer
    does not know the secret, ends the channel or misses the deadline. Aborts the channel then.
    """
    talk = _Talk(channel, secret, deadline_s)
    with talk.guarded():
        nonce = secrets.token_bytes(NONCE_BYTES)
        await talk.say(Opening(protocol_version=hello.protocol_version, nonce=nonce))
        challenge = await talk.hear(Challenge)
        nonces = (nonce, challenge.nonce)
        talk.verify(challenge.proof, b"server", *nonces)
        said = encode(hello)
        await talk.say(Identity(hello=hello, proof=talk.prove(b"client", *nonces, said)))
        accepted = await talk.hear(Accepted)
        talk.verify(accepted.proof, b"accepted", *nonces, said, encode(accepted.hello))
        return accepted.hello


async def welcome(
    channel: Channel,
    *,
    hello: Hello,
    secret: bytes,
    deadline_s: float,
    check: Check | None = None,
) -> Hello:
    """The server's side, first thing in a handler; returns the client's hello.

    ``check`` replaces the comparison of the two descriptions: it raises Corrupted to refuse, and
    the client learns what it expected and got. Raises and aborts as ``greet`` does.
    """
    talk = _Talk(channel, secret, deadline_s)
    with talk.guarded():
        try:
            return await _welcome(talk, hello, check or (lambda peer: compare(hello, peer)))
        except Corrupted as error:
            await talk.refuse(error)
            raise


async def _welcome(talk: _Talk, hello: Hello, check: Check) -> Hello:
    opening = await talk.hear(Opening)
    _same("protocol version", hello.protocol_version, opening.protocol_version)
    nonce = secrets.token_bytes(NONCE_BYTES)
    nonces = (opening.nonce, nonce)
    await talk.say(Challenge(nonce=nonce, proof=talk.prove(b"server", *nonces)))
    identity = await talk.hear(Identity)
    said = encode(identity.hello)
    talk.verify(identity.proof, b"client", *nonces, said)
    check(identity.hello)
    proof = talk.prove(b"accepted", *nonces, said, encode(hello))
    await talk.say(Accepted(hello=hello, proof=proof))
    return identity.hello


def compare(ours: Hello, theirs: Hello) -> None:
    """Raise Corrupted for the first thing that both hellos describe and describe differently."""
    _same("protocol version", ours.protocol_version, theirs.protocol_version)
    for key in sorted(ours.description.keys() & theirs.description.keys()):
        _same(f"description {key!r}", ours.description[key], theirs.description[key])


def _same(field: str, expected: object, got: object) -> None:
    if expected != got:
        raise Corrupted(field, expected=expected, got=got)


class _Talk:
    """The messages of one handshake under one deadline, small until the peer is known."""

    def __init__(self, channel: Channel, secret: bytes, deadline_s: float) -> None:
        if not secret:
            raise ConfigError("secret: an empty secret proves nothing")
        self._channel = channel
        self._secret = secret
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + deadline_s
        self._deadline_s = deadline_s

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        channel = self._channel
        usual, channel.limits = channel.limits, STRANGER_LIMITS
        try:
            yield
        except TransferTimeout as error:
            channel.abort()
            raise ConnectFailed(
                f"{channel.peer}: the handshake was not over within {self._deadline_s:g} s"
            ) from error
        except PeerLost as error:
            channel.abort()
            raise ConnectFailed(f"{channel.peer} ended the handshake: {error}") from error
        except BaseException:
            channel.abort()
            raise
        finally:
            channel.limits = usual

    def _remaining_s(self) -> float:
        return max(0.0, self._ends_at - self._loop.time())

    async def say(self, value: Message) -> None:
        await self._channel.send(encode(value), deadline_s=self._remaining_s())

    async def hear(self, kind: type[M]) -> M:
        incoming = await self._channel.receive(deadline_s=self._remaining_s())
        try:
            value = decode(incoming.header)
        except WireError as error:
            raise Corrupted("handshake", expected=kind.__name__, got=str(error)) from error
        if isinstance(value, Refused):
            field = f"{self._channel.peer} refused this side: {value.field}"
            raise Corrupted(field, expected=value.expected, got=value.got)
        if not isinstance(value, kind):
            raise Corrupted("handshake", expected=kind.__name__, got=type(value).__name__)
        return value

    async def refuse(self, error: Corrupted) -> None:
        """Tell the peer why; it may be gone already."""
        refused = Refused(field=error.what, expected=str(error.expected), got=str(error.got))
        with contextlib.suppress(PeerLost, TransferTimeout):
            await self.say(refused)
            await self._channel.aclose()

    def prove(self, *parts: bytes) -> bytes:
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._secret, framed, "sha256")

    def verify(self, proof: bytes, *parts: bytes) -> None:
        if not hmac.compare_digest(proof, self.prove(*parts)):
            raise ConnectFailed(f"{self._channel.peer} does not know this cluster's secret")
