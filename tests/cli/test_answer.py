"""What ``launch --prompt`` prints, from an engine that answers what it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from dvrt.cli.answer import PromptOptions, answer_as_json, answer_as_text
from dvrt.errors import ConfigError
from dvrt.options import make_options
from dvrt.requests import FinishReason
from dvrt.results import Completion, Sample, Timings, Token

TEXTS = ("Once", "", " upon é")


class Engine:
    """Answers every prompt with three tokens; keeps what it was asked."""

    def __init__(self, *, text: object | None, fail_after: int = 9) -> None:
        self.text = text
        self.asked: list[tuple[str | Sequence[int], dict[str, Any]]] = []
        self.closed = 0
        self._fail_after = fail_after

    async def generate(self, prompt: str | Sequence[int], **options: Any) -> AsyncGenerator[Token]:
        self.asked.append((prompt, options))
        try:
            for index, text in enumerate(TEXTS):
                if index == self._fail_after:
                    raise LookupError("midway")
                yield Token(id=index + 5, text=text, index=index)
        finally:
            self.closed += 1

    async def complete(self, prompt: str | Sequence[int], **options: Any) -> Completion:
        self.asked.append((prompt, options))
        sample = Sample(token_ids=(5, 6, 7), text="".join(TEXTS), finish_reason=FinishReason.STOP)
        timings = Timings(queued_s=0.25, first_token_s=0.5, total_s=1.5)
        return Completion(request_id="r", n_prompt_tokens=2, samples=(sample,), timings=timings)


async def test_text_is_streamed(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(text=object())
    await answer_as_text(engine, "hi", {"max_tokens": 3})
    assert capsys.readouterr().out == "Once upon é\n"
    assert engine.asked == [("hi", {"max_tokens": 3})]


async def test_without_a_tokenizer_ids_are_streamed(capsys: pytest.CaptureFixture[str]) -> None:
    await answer_as_text(Engine(text=None), (1, 2), {})
    assert capsys.readouterr().out.split() == ["5", "6", "7"]


async def test_a_failure_midway_closes_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(text=object(), fail_after=1)
    with pytest.raises(LookupError):
        await answer_as_text(engine, "hi", {})
    assert engine.closed == 1
    assert capsys.readouterr().out == "Once\n"


async def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    await answer_as_json(Engine(text=object()), "hi", {})
    assert json.loads(capsys.readouterr().out) == {
        "text": "Once upon é",
        "token_ids": [5, 6, 7],
        "finish_reason": "stop",
        "timings": {"queued_s": 0.25, "first_token_s": 0.5, "per_token_s": 0.5, "total_s": 1.5},
    }


def test_prompt_options_reach_the_engine() -> None:
    asked = {"prompt_ids": "1,2", "max_tokens": 4, "temperature": 0, "seed": 3}
    options = make_options(PromptOptions, asked)
    assert options.source == (1, 2)
    assert options.for_engine(["END"]) == {
        "max_tokens": 4,
        "temperature": 0.0,
        "top_k": None,
        "top_p": None,
        "repetition_penalty": None,
        "seed": 3,
        "ignore_eos": False,
        "stop": ("END",),
    }


def test_without_a_prompt_there_is_no_source() -> None:
    assert make_options(PromptOptions, {}).source is None


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"prompt": ""}, "prompt is ''; it is empty"),
        ({"prompt_ids": "1,-2"}, "token ids count from 0"),
        ({"prompt": "a", "top_p": 0}, "top_p is 0.0; it must be above 0"),
        ({"prompt": "a", "seed": 1 << 64}, "seed is 18446744073709551616; it must be at least 0"),
        ({"prompt": "a", "temperature": 1e-9}, "temperature is 1e-09; above 0"),
        ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty is 0.0; it must be above 0"),
        ({"prompt": "a", "repetition_penalty": 2000}, "repetition_penalty is 2000.0"),
        ({"prompt": "a", "top_k": 1 << 31}, "top_k is 2147483648"),
        ({"ignore_eos": True}, "ignore_eos is given without a prompt"),
        ({"top_k": 1}, "top_k is given without a prompt"),
    ],
)
def test_what_no_request_may_have_is_refused_before_a_launch(
    values: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        make_options(PromptOptions, values)


def test_the_largest_seed_is_one() -> None:
    assert make_options(PromptOptions, {"prompt": "a", "seed": (1 << 64) - 1}).seed
