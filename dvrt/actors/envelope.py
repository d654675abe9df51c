"""What stands around a message between two nodes: for whom it is, from whom, and of what kind.

A header is the msgpack array ``[kind, target, sender, ask, body]``; ``body`` is a wire message,
empty for the kinds that have none. Regions travel beside it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgpack

import dvrt.errors
from dvrt.errors import ActorGone, DvrtError, WireError
from dvrt.transport import MAX_HEADER_BYTES
from dvrt.wire import decode, encode, message

MAX_TEXT = 4000
"""Characters of an error's text that travel."""
_MAX_ASK = 1 << 63


class Kind(IntEnum):
    TELL = 1
    ASK = 2
    ANSWER = 3
    """``target`` is empty, ``ask`` says what is answered."""
    FAILURE = 4
    """As ANSWER; the body is a Failure."""
    WATCH = 5
    """Tell this side when ``target`` ends."""
    ENDED = 6
    """``sender`` has ended or never was; the body is a Failure whose text says why."""
    BEAT = 7
    """Answered with an ECHO by the peer's node, no actor involved."""
    ECHO = 8


class Envelope(NamedTuple):
    """One header, checked; ``body`` may still turn out not to be a message."""

    kind: Kind
    target: str
    sender: str
    ask: int
    body: bytes


@message("actor.acknowledged")
class Acknowledged:
    """The answer to an ask whose handler returned None."""


@message("actor.failure")
class Failure:
    """An error on its way to another process: its class by name, its text, its simple fields."""

    error: str
    text: str
    fields: dict[str, bool | int | float | str | None]


def pack(kind: Kind, target: str, sender: str = "", ask: int = 0, body: bytes = b"") -> bytes:
    """The header. Raises WireError when it is larger than a channel takes."""
    header: bytes = msgpack.packb((kind, target, sender, ask, body))
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"a message of {len(header)} bytes; limit {MAX_HEADER_BYTES}")
    return header


def unpack(header: bytes) -> Envelope:
    """Raises WireError for anything that is not exactly one header."""
    try:
        raw = msgpack.unpackb(header, raw=False, use_list=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not an envelope: {error}") from error
    if type(raw) is not tuple or len(raw) != 5:
        raise WireError("not an envelope: expected [kind, target, sender, ask, body]")
    kind, target, sender, ask, body = raw
    if type(target) is not str or type(sender) is not str or type(body) is not bytes:
        raise WireError("not an envelope: target and sender are text, body is bytes")
    if type(ask) is not int or not 0 <= ask < _MAX_ASK:
        raise WireError("not an envelope: ask is a number")
    try:
        return Envelope(Kind(kind), target, sender, ask, body)
    except ValueError:
        raise WireError(f"not an envelope: unknown kind {kind!r}") from None


def pack_error(error: BaseException) -> bytes:
    """The body that brings an error over. One that is not a DvrtError becomes ActorGone."""
    kind = type(error).__name__ if _is_known(type(error)) else ActorGone.__name__
    fields = getattr(error, "__dict__", {}) if kind != ActorGone.__name__ else {}
    simple = {name: _simple(value) for name, value in fields.items()}
    return encode(Failure(error=kind, text=str(error)[:MAX_TEXT], fields=simple))


def unpack_error(body: bytes) -> DvrtError:
    """The error in ``body``: same class, text and simple fields. A class unknown here is DvrtError.

    Raises WireError when it is not a Failure.
    """
    failure = decode(body)
    if not isinstance(failure, Failure):
        raise WireError(f"expected a Failure, got a {type(failure).__name__}")
    kind = getattr(dvrt.errors, failure.error, DvrtError)
    if not _is_known(kind):
        kind = DvrtError
    error: DvrtError = kind.__new__(kind)
    error.args = (failure.text,)
    error.__dict__.update(failure.fields)
    return error


def _is_known(kind: object) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, DvrtError)
        and getattr(dvrt.errors, kind.__name__, None) is kind
    )


def _simple(value: object) -> bool | int | float | str | None:
    """The value itself if it travels as it is, else how it looks."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < _MAX_ASK else str(value)[:MAX_TEXT]
    return (value if isinstance(value, str) else repr(value))[:MAX_TEXT]
