"""The pieces of a text, joined, are its decoding: every kind of tokenizer, every stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.errors import RequestRejected
from dvrt.models.detokenizers import ByteText, TokenText, WholeText, make_detokenizer
from dvrt.models.text import TextCodec
from tests.text.vocabularies import KINDS, byte_characters, codec, n_ids

FAST = [kind for kind in KINDS if kind not in ("bpe_suffix", "only_special", "not_rust")]
STOPS = [
    "STOP",
    "ab",
    "abc",
    "b",
    ".",
    " ",
    "\n",
    "\ufffd",
    "😀",
    "é",
    "e\u0301",
    "ST",
    "the cat",
    "aab",
]


def pieces_of(codec: TextCodec, ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    stream = codec.stream(stop)
    pieces = [stream.push(token_id) for token_id in ids]
    pieces.append(stream.finish())
    assert stream.text == "".join(pieces)
    return pieces


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The oracle: read one character after the other until some stop string is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@st.composite
def kinds_and_ids(draw: st.DrawFn, kinds: Sequence[str] = tuple(KINDS)) -> tuple[str, list[int]]:
    kind = draw(st.sampled_from(kinds))
    return kind, draw(st.lists(st.integers(0, n_ids(kind) - 1), max_size=30))


@settings(max_examples=600)
@given(kinds_and_ids())
def test_pieces_joined_equal_decode(case: tuple[str, list[int]]) -> None:
    kind, ids = case
    assert "".join(pieces_of(codec(kind), ids)) == codec(kind).decode(ids)


@settings(max_examples=400)
@given(kinds_and_ids(), st.lists(st.sampled_from(STOPS), min_size=1, max_size=4))
def test_text_ends_before_the_first_stop_string(
    case: tuple[str, list[int]], stops: list[str]
) -> None:
    kind, ids = case
    stream = codec(kind).stream(stops)
    pieces = [stream.push(token_id) for token_id in ids]
    pieces.append(stream.finish())
    assert ("".join(pieces), stream.stopped) == cut(codec(kind).decode(ids), stops)


@settings(max_examples=150)
@given(st.data())
def test_byte_soup_never_shows_a_character_in_parts(data: st.DataObject) -> None:
    """Any text, cut into tokens anywhere between its bytes, comes in whole characters."""
    text = data.draw(st.text(max_size=12))
    raw = text.encode()
    vocabulary = codec("byte_level")._tokenizer.get_vocab()
    ids, at = [], 0
    while at < len(raw):
        size = data.draw(st.integers(1, 4))
        piece = byte_characters(raw[at : at + size])
        at += size if piece in vocabulary else 1
        ids.append(vocabulary.get(piece, vocabulary[piece[0]]))
    pieces = pieces_of(codec("byte_level"), ids)
    assert "".join(pieces) == text
    assert pieces[-1] == ""


@settings(max_examples=150)
@given(kinds_and_ids(FAST))
def test_text_comes_as_soon_as_it_is_certain(case: tuple[str, list[int]]) -> None:
    """Only a character's beginning, a run of byte tokens or an unbegun text may be waited for."""
    kind, ids = case
    stream = codec(kind).stream()
    for n, token_id in enumerate(ids, 1):
        stream.push(token_id)
        ending = codec(kind).decode(ids[:n]).removeprefix(stream.text)
        if kind.startswith("byte_level"):
            assert ending in ("", "\ufffd", "\ufffd" * 2)
        elif not kind.startswith(("llama", "gemma")):
            assert ending == "" or stream.text == ""


@pytest.mark.parametrize(
    ("kind", "text_class"),
    [
        ("byte_level", ByteText),
        ("byte_level_fused", ByteText),
        ("llama", TokenText),
        ("gemma", TokenText),
        ("metaspace_first", TokenText),
        ("word_piece_cleaned", TokenText),
        ("no_decoder", TokenText),
        ("bpe_suffix", WholeText),
        ("only_special", WholeText),
        ("not_rust", WholeText),
    ],
)
def test_each_kind_is_decoded_in_its_own_way(kind: str, text_class: type) -> None:
    assert isinstance(codec(kind)._beginning, text_class)


@pytest.mark.parametrize("kind", ["byte_level", "llama", "metaspace_always", "word_piece"])
def test_a_long_text_costs_no_more_per_token_than_a_short_one(kind: str) -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return codec(kind).decode(ids)

    words = [word for word in ("▁the", "Ġthe", "the") if word in codec(kind)._tokenizer.get_vocab()]
    text = make_detokenizer(codec(kind)._tokenizer.backend_tokenizer, decode)
    token_id = codec(kind)._tokenizer.convert_tokens_to_ids(words[0])
    for _ in range(500):
        piece, text = text.push(token_id)
        assert piece.strip() == "the"
    assert longest <= 3


def test_a_stop_string_is_found_across_tokens_and_nothing_after_it_is_said() -> None:
    text = codec("byte_level")
    ids = [i for word in ("ab", "ST", "a", "ST", "OP", "ab") for i in ids_of(text, word)]
    stream = text.stream(["STOP"])
    assert [stream.push(i) for i in ids] == ["ab", "", "STa", "", "", ""]
    assert stream.stopped
    assert (stream.finish(), stream.text) == ("", "abSTa")


def test_a_stop_string_completed_only_by_the_end_is_found() -> None:
    """An open character becomes a replacement character at the end, and that can complete it."""
    text = codec("byte_level")
    stream = text.stream(["b\ufffd"])
    pushed = [stream.push(i) for i in (*ids_of(text, "ab"), *ids_of(text, b"\xf0\x9f"))]
    assert pushed == ["a", ""]
    assert (stream.finish(), stream.stopped) == ("", True)


def test_what_a_possible_stop_string_held_back_is_said_in_the_end() -> None:
    text = codec("byte_level")
    stream = text.stream(["STOP", "abc"])
    assert [stream.push(i) for i in (*ids_of(text, "ST"), *ids_of(text, "ab"))] == ["", "ST"]
    assert repr(stream) == "<TextStream open, 2 characters, held 'ab'>"
    assert (stream.finish(), stream.finish(), stream.text) == ("ab", "", "STab")


@pytest.mark.parametrize(
    ("words", "stop", "expected"),
    [
        (["a", "b"], (), "ab"),  # said already
        (["a", b"\xf0\x9f"], (), "a"),
        ([b"\xf0", b"\x9f"], (), "\ufffd"),
        ([b"\xf0\x9f", b"\x98\x80"], (), "😀"),  # said already
        (["a", "ST"], ("STOP",), "a"),
        (["ST", "ab"], ("STOP",), "STab"),  # said already
        (["a", ""], (), "a"),
    ],
)
def test_the_last_token_is_dropped_as_far_as_it_was_not_said(
    words: list[str | bytes], stop: tuple[str, ...], expected: str
) -> None:
    text = codec("byte_level")
    stream = text.stream(stop)
    for word in words:
        stream.push(ids_of(text, word)[0])
    stream.finish(drop_last=True)
    assert stream.text == expected


def test_dropping_the_last_of_no_tokens_is_harmless() -> None:
    assert codec("byte_level").stream().finish(drop_last=True) == ""


def test_a_special_token_is_no_text_and_need_not_be_dropped() -> None:
    text = codec("llama")
    stream = text.stream()
    end_id = text._tokenizer.eos_token_id
    assert [stream.push(i) for i in (*ids_of(text, "▁cat"), end_id)] == ["cat", ""]
    assert (stream.finish(drop_last=True), stream.text) == ("", "cat")


def test_pushing_after_the_end_is_a_bug_of_the_caller() -> None:
    stream = codec("byte_level").stream()
    stream.finish()
    with pytest.raises(RuntimeError, match="after the end"):
        stream.push(0)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestRejected, match="a stop string is empty"):
        codec("byte_level").stream(["a", ""])


def ids_of(codec: TextCodec, word: str | bytes) -> list[int]:
    """The one token that is ``word``."""
    vocabulary = codec._tokenizer.get_vocab()
    if word not in vocabulary:
        word = byte_characters(word if isinstance(word, bytes) else word.encode())
    return [vocabulary[word]]


@pytest.mark.parametrize("kind", ["llama", "gemma", "metaspace_always", "metaspace_first"])
def test_a_token_alone_keeps_its_space(kind: str) -> None:
    one = codec(kind)
    told = {word: one.token_bytes(ids_of(one, word)[0]) for word in ("▁the", "the", "▁", "▁字")}
    assert told == {"▁the": b" the", "the": b"the", "▁": b" ", "▁字": " 字".encode()}


@pytest.mark.parametrize("kind", ["llama", "byte_level"])
def test_every_byte_of_a_character_is_known(kind: str) -> None:
    one = codec(kind)
    for byte in "é😀 ".encode():
        (token_id,) = ids_of(one, f"<0x{byte:02X}>" if kind == "llama" else bytes([byte]))
        assert one.token_bytes(token_id) == bytes([byte])


@settings(max_examples=300)
@given(kinds_and_ids(kinds=["byte_level", "llama", "gemma", "metaspace_never"]))
def test_bytes_of_tokens_joined_are_the_text(case: tuple[str, list[int]]) -> None:
    """But for bytes that are no text, of which a tokenizer's own rules make other characters."""
    kind, ids = case
    one = codec(kind)
    data = b"".join(one.token_bytes(token_id) or b"" for token_id in ids)
    text = one.decode(ids)
    if "\ufffd" not in text:
        stripped = kind == "llama" and data.startswith(b" ")
        assert data.decode() == (" " if stripped else "") + text


def test_tokens_without_text_and_those_not_known() -> None:
    for kind in FAST:
        special = codec(kind)._tokenizer.convert_tokens_to_ids("</s>")
        assert codec(kind).token_bytes(special) == b""
        assert codec(kind).token_bytes(n_ids(kind)) == b""
    whole = codec("not_rust")
    assert whole.token_bytes(whole.encode("ä")[0]) is None
    assert whole.token_bytes(whole.encode("a")[0]) == b"a"
