"""Tokenizers of every kind, built on the spot: small vocabularies full of awkward tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from dvrt.models.text import TextCodec

WORDS = (
    "the", " the", "The", " cat", "a", " a", " ", "  ", ".", " .", ",", "n't", " 's", "\n", "\t",
    "ä", "é", "e\u0301", "\u0301", "ü", "ß", "字", " 字", "漢字", "😀", "👩", "\u200d",
    "👩\u200d🚀", "\ufe0f", "\ufffd", "\ufffd\ufffd", "\u00a0", "\u2028", "STOP", "ST",
    "OP", "ab", "abc", "b",
)  # fmt: skip
FRAGMENTS = (
    b"\xf0", b"\x9f", b"\x98", b"\x80", b"\xf0\x9f", b"\x98\x80", b"\xf0\x9f\x98", b"x\xe5",
    b"\xad", b"\x97", b"\xad\x97y", b"\xc3", b"\xa9", b"\xa9\xc3", b"\xff", b"\xc0\xaf",
    b"\xed\xa0", b"\xe0\x80", b"\xf4\x90", b"\x80\x80\x80", b"ok\xe2\x82", b"\xac ok",
)  # fmt: skip
SPECIAL = ("<s>", "</s>", "<|pad|>")


def byte_characters(data: bytes) -> str:
    """``data`` as byte-level vocabularies write it, by transformers' own account."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = bytes_to_unicode()
    return "".join(table[byte] for byte in data)


def word_level(
    words: list[str], decoder: decoders.Decoder | None, added: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A vocabulary of exactly these tokens, special ones after them, decoded by ``decoder``."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(word, special=False) for word in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def byte_level() -> PreTrainedTokenizerFast:
    pieces = [*(word.encode() for word in WORDS), *FRAGMENTS, *(bytes([b]) for b in range(256))]
    words = [*(byte_characters(piece) for piece in pieces), "", "漢 not bytes"]
    return word_level(words, decoders.ByteLevel(), added=("<tool>", "é added", "😀 added"))


def spaced(words: tuple[str, ...]) -> list[str]:
    return [word.replace(" ", "▁") for word in words]


def byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def llama(*steps: decoders.Decoder) -> PreTrainedTokenizerFast:
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *steps]
    words = ["", *byte_tokens(), *spaced(WORDS), "▁▁▁"]
    return word_level(words, decoders.Sequence(chain), added=("<tool>", " spaced "))


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    decoder = decoders.Metaspace(prepend_scheme=scheme)
    return word_level(["", *spaced(WORDS)], decoder, added=("<tool>",))


def word_piece(*, cleanup: bool) -> PreTrainedTokenizerFast:
    words = [word.strip() or "x" for word in WORDS]
    pieces = [*words, *(f"##{word}" for word in words), "##", "####", "[CLS]"]
    return word_level(pieces, decoders.WordPiece(cleanup=cleanup))


def bpe_suffix() -> PreTrainedTokenizerFast:
    words = [*WORDS, *(f"{word}</w>" for word in WORDS)]
    return word_level(words, decoders.BPEDecoder())


KINDS: dict[str, Callable[[], object]] = {
    "byte_level": byte_level,
    "byte_level_fused": lambda: word_level(
        [byte_characters(f) for f in FRAGMENTS],
        decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
    ),
    "llama": lambda: llama(decoders.Strip(" ", 1, 0)),
    "llama_strips_two": lambda: llama(decoders.Strip(" ", 2, 0)),
    "gemma": llama,
    "metaspace_always": lambda: metaspace("always"),
    "metaspace_first": lambda: metaspace("first"),
    "metaspace_never": lambda: metaspace("never"),
    "word_piece": lambda: word_piece(cleanup=False),
    "word_piece_cleaned": lambda: word_piece(cleanup=True),
    "no_decoder": lambda: word_level(list(WORDS), None),
    "bpe_suffix": bpe_suffix,
    "only_special": lambda: word_level(["<s>"], None),
    "not_rust": ByT5Tokenizer,
}


@functools.cache
def codec(kind: str) -> TextCodec:
    return TextCodec(KINDS[kind]())  # type: ignore[arg-type]


@functools.cache
def n_ids(kind: str) -> int:
    """The vocabulary's size and some ids that no token has."""
    return len(codec(kind)._tokenizer) + 3
