"""Typed, versioned messages as msgpack.

A message is a frozen dataclass marked ``@message``. On the wire it is ``[tag, version, fields]``,
fields in order of declaration. Decoding checks every field against its annotation, so code behind
``decode`` never sees a wrong type. Nothing is pickled, and nothing but marked classes is made.

Field types: bool int float str bytes, ``X | None``, ``tuple[X, ...]``, ``tuple[X, Y]``,
``dict[str, X]``, string Enums, other messages (also a union of them, or ``Message`` for any).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

import msgpack

from dvrt.errors import DvrtError, WireError

MAX_MESSAGE_BYTES = 16 << 20
"""The largest message that is encoded or decoded; bulk data travels as regions beside it."""


class Message:
    """Marks a class that may travel; made by the ``message`` decorator."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Codec:
    tag: str
    version: int
    cls: type
    names: tuple[str, ...]


_by_tag: dict[str, _Codec] = {}
_by_class: dict[type, _Codec] = {}

M = TypeVar("M")
Decoder = Callable[[Any], Any]
Encoder = Callable[[Any], Any]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def message(tag: str, *, version: int = 1) -> Callable[[type[M]], type[M]]:
    """Register a class as the message ``tag``; it becomes a frozen, keyword-only dataclass."""

    def register(cls: type[M]) -> type[M]:
        made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
        if tag in _by_tag:
            raise ValueError(f"two messages are called {tag!r}")
        codec = _Codec(tag, version, made, tuple(f.name for f in fields(made)))  # type: ignore[arg-type]
        _by_tag[tag] = _by_class[made] = codec
        return made

    return register


def encode(value: object) -> bytes:
    """The bytes of a message. Raises WireError for a class that is not one, or beyond the limit."""
    data: bytes = msgpack.packb(_pack_message(value), use_bin_type=True)
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a {type(value).__name__} of {len(data)} bytes; limit {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes | memoryview) -> Any:
    """The message in ``data``. Raises WireError for anything that is not exactly one message."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes; limit {MAX_MESSAGE_BYTES}")
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack: {error}") from error
    return _unpack_message(raw)


def _pack_message(value: object) -> list[Any]:
    codec = _by_class.get(type(value))
    if codec is None:
        raise WireError(f"{type(value).__name__} is not a message")
    take, packers = _packing(codec.cls)
    values = take(value)
    for index, pack in packers:
        values[index] = pack(values[index])
    return [codec.tag, codec.version, values]


def _unpack_message(raw: Any) -> Any:
    if (
        type(raw) is not list
        or len(raw) != 3
        or type(raw[0]) is not str
        or type(raw[2]) is not list
    ):
        raise WireError("not a message: expected [tag, version, fields]")
    tag, version, values = raw
    codec = _by_tag.get(tag)
    if codec is None:
        raise WireError(f"unknown message {tag[:64]!r}")
    if version != codec.version:
        raise WireError(
            f"message {tag!r} has version {version!r}; this side speaks {codec.version}"
        )
    unpackers = _unpackers(codec.cls)
    if len(values) != len(unpackers):
        raise WireError(f"message {tag!r} has {len(values)} fields, expected {len(unpackers)}")
    out = {}
    for (name, kind, unpack), value in zip(unpackers, values, strict=True):
        if type(value) is kind:
            out[name] = value
            continue
        try:
            out[name] = unpack(value)
        except WireError as error:
            raise WireError(f"{tag}.{name}: {error}") from None
    try:
        return codec.cls(**out)
    except (ValueError, TypeError, DvrtError) as error:  # a __post_init__ that refuses its values
        raise WireError(f"{tag}: {error}") from error


@cache
def _unpackers(cls: type) -> list[tuple[str, type | None, Decoder]]:
    """Of each field its name, the type that is right as it comes, and what sees to all others."""
    hints = typing.get_type_hints(cls)
    return [
        (name, hints[name] if _is_scalar(hints[name]) else None, _decoder(hints[name]))
        for name in _by_class[cls].names
    ]


@cache
def _packing(cls: type) -> tuple[Callable[[Any], list[Any]], list[tuple[int, Encoder]]]:
    """What takes the values out of a message, and what makes those that need it msgpack's own."""
    hints, names = typing.get_type_hints(cls), _by_class[cls].names
    encoders = [_encoder(hints[name]) for name in names]
    rest = [(i, encoder) for i, encoder in enumerate(encoders) if encoder is not _same]
    if len(names) < 2:  # of one name attrgetter gives no tuple
        return lambda value: [getattr(value, name) for name in names], rest
    take = attrgetter(*names)
    return lambda value: list(take(value)), rest


def _same(value: Any) -> Any:
    return value


def _is_scalar(hint: Any) -> bool:
    return hint in (bool, int, float, str, bytes, type(None))


def _encoder(hint: Any) -> Encoder:
    """How a value of this annotation becomes msgpack's own types."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_scalar(hint):
        return _same
    if origin in (typing.Union, types.UnionType):
        rest = [arg for arg in args if arg is not type(None)]
        if all(_is_scalar(arg) for arg in rest):
            return _same
        inner = _encoder(rest[0]) if len(rest) == 1 else _pack_message
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _tuple_encoder(args)
    if origin is dict:
        each = _encoder(args[1])
        return lambda value: {key: each(item) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value: value.value
    if hint is Message or is_dataclass(hint):
        return _pack_message
    raise TypeError(f"{hint!r} cannot be a message field")


def _tuple_encoder(args: tuple[Any, ...]) -> Encoder:
    if len(args) == 2 and args[1] is Ellipsis:
        each = _encoder(args[0])
        return _same if each is _same else lambda value: [each(item) for item in value]
    parts = [_encoder(arg) for arg in args]
    return lambda value: [part(item) for part, item in zip(parts, value, strict=True)]


def _decoder(hint: Any) -> Decoder:
    """A function that checks a decoded value against this annotation and makes the field of it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return _float
    if _is_scalar(hint):
        return _scalar_decoder(hint)
    if origin in (typing.Union, types.UnionType):
        return _union_decoder(args)
    if origin is tuple:
        return _tuple_decoder(args)
    if origin is dict:
        each = _decoder(args[1])
        return lambda value: {
            _exactly(str, key): each(item) for key, item in _exactly(dict, value).items()
        }
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value: _enum(hint, value)
    if hint is Message:
        return _unpack_message
    if is_dataclass(hint):
        return lambda value: _instance(hint, _unpack_message(value))
    raise TypeError(f"{hint!r} cannot be a message field")


def _scalar_decoder(kind: type) -> Decoder:
    def check(value: Any) -> Any:
        return value if type(value) is kind else _exactly(kind, value)

    return check


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise WireError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _float(value: Any) -> float:
    return value if type(value) is float else float(_exactly(int, value))


def _enum(kind: type[Enum], value: Any) -> Enum:
    try:
        return kind(value)
    except ValueError as error:
        raise WireError(str(error)) from None


def _instance(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        wanted = " or ".join([k.__name__ for k in (kind if type(kind) is tuple else (kind,))])
        raise WireError(f"expected a {wanted}, got a {type(value).__name__}")
    return value


def _union_decoder(args: tuple[Any, ...]) -> Decoder:
    options = [arg for arg in args if arg is not type(None)]
    optional = len(options) < len(args)
    if all(is_dataclass(arg) for arg in options) and len(options) > 1:
        inner: Decoder = lambda value: _instance(tuple(options), _unpack_message(value))  # noqa: E731
    elif len(options) == 1:
        inner = _decoder(options[0])
    else:
        inner = lambda value: _one_of(options, value)  # noqa: E731
    return lambda value: None if optional and value is None else inner(value)


def _one_of(options: list[type], value: Any) -> Any:
    if type(value) not in options:
        raise WireError(
            f"expected {' or '.join(o.__name__ for o in options)}, got {type(value).__name__}"
        )
    return value


def _tuple_decoder(args: tuple[Any, ...]) -> Decoder:
    if len(args) == 2 and args[1] is Ellipsis:
        each = _decoder(args[0])
        return lambda value: tuple([each(item) for item in _exactly(list, value)])
    parts = [_decoder(arg) for arg in args]

    def fixed(value: Any) -> tuple[Any, ...]:
        if len(_exactly(list, value)) != len(parts):
            raise WireError(f"expected {len(parts)} items, got {len(value)}")
        return tuple([part(item) for part, item in zip(parts, value, strict=True)])

    return fixed
