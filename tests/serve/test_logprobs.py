"""Names and bytes of tokens, for tokenizers whose tokens read otherwise at a text's beginning."""

from __future__ import annotations

from dvrt.results import Token
from dvrt.serve.logprobs import chat_logprobs, completion_logprobs
from tests.text.test_text_stream import ids_of
from tests.text.vocabularies import codec

LLAMA = codec("llama")


def token(word: str, *others: str) -> Token:
    alternatives = tuple((ids_of(LLAMA, one)[0], -1.0 - n) for n, one in enumerate(others))
    return Token(
        id=ids_of(LLAMA, word)[0],
        text="",
        index=0,
        sample=0,
        logprob=-0.5,
        alternatives=alternatives,
        finish_reason=None,
    )


def test_a_word_inside_a_text_and_the_same_at_its_beginning_are_two() -> None:
    told = completion_logprobs([token("▁the", "the", "<0xF0>", "<0x9F>")], LLAMA, [0])
    assert told["tokens"] == [" the"]
    expected = {" the": -0.5, "the": -1.0, r"bytes:\xf0": -2.0, r"bytes:\x9f": -3.0}
    assert told["top_logprobs"] == [expected]


def test_bytes_have_the_space_and_parts_of_characters() -> None:
    tokens = [token(word) for word in ("▁the", "<0xF0>", "<0x0A>", "</s>")]
    entries = chat_logprobs(tokens, LLAMA)["content"]
    end = f"token_id:{tokens[3].id}"
    assert [one["token"] for one in entries] == [" the", r"bytes:\xf0", "\n", end]
    assert [one["bytes"] for one in entries] == [list(b" the"), [0xF0], [10], None]
