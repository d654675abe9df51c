"""From token ids to text, one token at a time, for each way in which tokenizers decode.

There are three, chosen by the tokenizer's own decoder settings: as bytes (byte-level vocabularies),
token by token (Metaspace, WordPiece, Llama's chain with its byte fallback), as a whole (all else).
The first two are exact and cost the same for every token, however long the text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from dvrt.models.text_stream import Detokenizer

Decode = Callable[[Sequence[int]], str]

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f+][0-9A-Fa-f])>")
LOCAL_DECODERS = frozenset({"Replace", "Metaspace", "WordPiece", "Strip", "ByteFallback"})
"""Decoders that treat each token alone, but for the first token and for runs of byte tokens."""


@dataclass(frozen=True, slots=True)
class ByteText:
    """Tokens are bytes; those that are only the beginning of a character stay open."""

    bytes_of: Callable[[int], bytes]
    pending: bytes = b""

    def push(self, token_id: int) -> tuple[str, ByteText]:
        """See ``Detokenizer``."""
        data = self.pending + self.bytes_of(token_id)
        text, n_used = codecs.utf_8_decode(data, "replace", False)
        return text, replace(self, pending=data[n_used:])

    def rest(self) -> str:
        """See ``Detokenizer``."""
        return self.pending.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """See ``Detokenizer``."""
        return self.bytes_of(token_id)


@dataclass(frozen=True, slots=True)
class TokenRules:
    """How a vocabulary decodes token by token.

    ``anchor_id`` is an ordinary token that stands in for the text before, so that the rules for a
    text's beginning do not apply. Special and unknown tokens (``is_skipped``) have no text. Byte
    tokens become characters together with their neighbours: one invalid byte makes every byte of
    its run a replacement character. A text's beginning loses at most ``n_stripped`` characters.
    """

    decode: Decode
    anchor_id: int
    is_skipped: Callable[[int], bool]
    byte_of: Callable[[int], int | None]
    n_stripped: int
    anchor: str = field(init=False)
    cache: dict[int, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor", self.decode([self.anchor_id]))

    def text_inside(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` anywhere but at the beginning."""
        if len(ids) > 1:
            return self.decode([self.anchor_id, *ids])[len(self.anchor) :]
        if ids[0] not in self.cache:
            self.cache[ids[0]] = self.decode([self.anchor_id, *ids])[len(self.anchor) :]
        return self.cache[ids[0]]

    def bytes_inside(self, token_id: int) -> bytes:
        """What a token stands for anywhere but at the beginning; nothing for a skipped one."""
        if self.is_skipped(token_id):
            return b""
        byte = self.byte_of(token_id)
        return self.text_inside([token_id]).encode() if byte is None else bytes([byte])

    def is_enough_to_begin(self, ids: Sequence[int]) -> bool:
        """Whether the rules for a text's beginning concern nothing after ``ids``."""
        return len(self.text_inside(ids)) >= max(1, self.n_stripped)


@dataclass(frozen=True, slots=True)
class TokenText:
    """Tokens have their own texts; open are a run of byte tokens and a beginning without text."""

    rules: TokenRules
    has_begun: bool = False
    open_ids: tuple[int, ...] = ()

    def push(self, token_id: int) -> tuple[str, TokenText]:
        """See ``Detokenizer``."""
        if self.rules.is_skipped(token_id):
            return "", self
        ids = (*self.open_ids, token_id)
        is_begun = self.has_begun or self.rules.is_enough_to_begin(ids)
        if self.rules.byte_of(token_id) is not None or not is_begun:
            return "", replace(self, open_ids=ids)
        return self._text(ids), TokenText(self.rules, has_begun=True)

    def rest(self) -> str:
        """See ``Detokenizer``."""
        return self._text(self.open_ids) if self.open_ids else ""

    def token_bytes(self, token_id: int) -> bytes:
        """See ``Detokenizer``."""
        return self.rules.bytes_inside(token_id)

    def _text(self, ids: Sequence[int]) -> str:
        return self.rules.text_inside(ids) if self.has_begun else self.rules.decode(ids)


@dataclass(frozen=True, slots=True)
class WholeText:
    """Any tokenizer whose tokens change no more than the text of the token before them.

    Decodes everything for every token; certain is what two decodings in a row agree on.
    """

    decode: Decode
    ids: tuple[int, ...] = ()
    text: str = ""
    n_certain: int = 0

    def push(self, token_id: int) -> tuple[str, WholeText]:
        """See ``Detokenizer``."""
        ids = (*self.ids, token_id)
        text = self.decode(ids)
        agreed = text[: _n_common(self.text, text)].rstrip("\N{REPLACEMENT CHARACTER}")
        n_certain = max(self.n_certain, len(agreed))
        piece = text[self.n_certain : n_certain]
        return piece, replace(self, ids=ids, text=text, n_certain=n_certain)

    def rest(self) -> str:
        """See ``Detokenizer``."""
        return self.text[self.n_certain :]

    def token_bytes(self, token_id: int) -> bytes | None:
        """See ``Detokenizer``."""
        text = self.decode([token_id])
        return text.encode() if text and "\N{REPLACEMENT CHARACTER}" not in text else None


def _n_common(one: str, other: str) -> int:
    """The length of the longest beginning that two texts share."""
    if other.startswith(one):
        return len(one)
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def make_detokenizer(tokenizer: Tokenizer | None, decode: Decode) -> Detokenizer:
    """The beginning of a text; ``tokenizer`` is None where only ``decode`` is known."""
    if tokenizer is None:
        return WholeText(decode)
    chain = list(_decoder_chain(tokenizer))
    special = {
        added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special
    }
    if [step["type"] for step in chain if step["type"] != "Fuse"] == ["ByteLevel"]:
        return ByteText(_make_bytes_of(tokenizer, special))
    if not _is_local(chain):
        return WholeText(decode)
    return _make_token_text(tokenizer, decode, special, chain)


def _decoder_chain(tokenizer: Tokenizer) -> Iterable[Mapping[str, Any]]:
    """The settings of the tokenizer's decoders, in order; sequences unrolled."""
    if tokenizer.decoder is None:
        return
    steps = [json.loads(tokenizer.decoder.__getstate__())]
    while steps:
        step = steps.pop(0)
        if step["type"] == "Sequence":
            steps[:0] = step["decoders"]
        else:
            yield step


def _is_local(chain: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the decoders work token by token, and on the fused text only at its beginning."""
    types = [step["type"] for step in chain]
    n_local = types.index("Fuse") if "Fuse" in types else len(chain)
    return (
        LOCAL_DECODERS.issuperset(types[:n_local])
        and types.count("ByteFallback") <= 1
        and all(_strips_beginning(step) or step["type"] == "Fuse" for step in chain[n_local:])
    )


def _strips_beginning(step: Mapping[str, Any]) -> bool:
    return bool(step["type"] == "Strip" and step["stop"] == 0)


def _make_bytes_of(tokenizer: Tokenizer, special: set[str]) -> Callable[[int], bytes]:
    """Token id -> its bytes; none for special and unknown tokens."""
    byte_of = _byte_characters()
    cache: dict[int, bytes] = {}

    def bytes_of(token_id: int) -> bytes:
        if token_id not in cache:
            token = tokenizer.id_to_token(token_id)
            if token is None or token in special:
                cache[token_id] = b""
            elif all(character in byte_of for character in token):
                cache[token_id] = bytes(byte_of[character] for character in token)
            else:
                cache[token_id] = token.encode()
        return cache[token_id]

    return bytes_of


def _byte_characters() -> Mapping[str, int]:
    """How byte-level vocabularies write bytes: printable ones as themselves, others from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }


def _make_token_text(
    tokenizer: Tokenizer, decode: Decode, special: set[str], chain: Sequence[Mapping[str, Any]]
) -> Detokenizer:
    has_bytes = any(step["type"] == "ByteFallback" for step in chain)

    def is_skipped(token_id: int) -> bool:
        token = tokenizer.id_to_token(token_id)
        return token is None or token in special

    def byte_of(token_id: int) -> int | None:
        match = BYTE_TOKEN.fullmatch(tokenizer.id_to_token(token_id) or "") if has_bytes else None
        return int(match[1], 16) if match is not None else None

    n_stripped = sum(int(step["start"]) for step in chain if step["type"] == "Strip")
    for token_id in range(tokenizer.get_vocab_size()):
        is_ordinary = not is_skipped(token_id) and byte_of(token_id) is None
        if is_ordinary and _is_anchor(token_id, decode):
            return TokenText(TokenRules(decode, token_id, is_skipped, byte_of, n_stripped))
    return WholeText(decode)


def _is_anchor(token_id: int, decode: Decode) -> bool:
    """Whether the token has a text that stays what it is when more of the same follows."""
    one, two, three = (decode([token_id] * n) for n in (1, 2, 3))
    return bool(one) and two.startswith(one) and three == two + two[len(one) :]
