"""The model in the repository: the text it is made from, its making, and what it writes."""

from __future__ import annotations

import json
import random
import re
import runpy
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from dvrt.models.text import TextCodec

EXAMPLES = Path(__file__).parents[2] / "examples"
STORYTELLER = EXAMPLES / "storyteller"


@pytest.fixture
def grammar(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import story_grammar

    return story_grammar


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(STORYTELLER)


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    codec = TextCodec.load(STORYTELLER)
    assert codec is not None
    return codec


def test_stories_are_many_and_the_same_for_the_same_seed(grammar: ModuleType) -> None:
    texts = [story.text for story in islice(grammar.stories(1), 2000)]
    assert len(set(texts)) == 2000
    assert texts[:50] == [story.text for story in islice(grammar.stories(1), 50)]
    assert texts[:50] != [story.text for story in islice(grammar.stories(2), 50)]


def test_stories_leave_no_rule_open_and_articles_fit(grammar: ModuleType) -> None:
    wrong = re.compile(r"\ba [aeio]|\ban [^aeio]|[\[\]{}|]|  | [.,]")
    for story in islice(grammar.stories(3), 500):
        for text in (story.text, *story.topics):
            assert wrong.search(text) is None, text


def test_pronouns_fit_the_cast(grammar: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def she(rng: random.Random, other_than: object = None) -> object:
        name, kind = ("Ruby", "fox") if other_than is None else ("Lily", "owl")
        return grammar.Character(name=name, kind=kind, nature="kind", is_she=True)

    monkeypatch.setattr(grammar, "make_character", she)
    for story in islice(grammar.stories(4), 200):
        assert re.search(r"\b(he|him|his|himself)\b", story.text, re.IGNORECASE) is None
        assert re.search(r"\b(she|her)\b", story.text, re.IGNORECASE)


def test_the_checkpoint_is_small_and_can_be_cut_into_even_and_uneven_stages() -> None:
    config = json.loads((STORYTELLER / "config.json").read_bytes())
    assert config["num_hidden_layers"] == 6
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] is True
    weights = STORYTELLER / "model.safetensors"
    assert weights.stat().st_size <= 8e6
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}


def greedy(model: LlamaForCausalLM, ids: list[int]) -> list[int]:
    prompt = torch.tensor([ids])
    written = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=400,
        do_sample=False,
        temperature=None,
        top_p=None,
        pad_token_id=0,
    )
    return written[0, len(ids) :].tolist()


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text))


def test_it_tells_a_story_and_ends_it(
    model: LlamaForCausalLM, codec: TextCodec, grammar: ModuleType
) -> None:
    prompt = "Once upon a time"
    written = greedy(model, codec.encode(prompt))
    text = prompt + codec.decode(written)
    assert written[-1] == model.config.eos_token_id
    assert 150 <= len(written) < 400
    assert 6 <= text.count("\n\n") + 1 <= 8
    known = set().union(*(words(story.text) for story in islice(grammar.stories(1), 1000)))
    assert words(text) <= known
    names = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text)).most_common(2)
    assert [count >= 3 for _, count in names] == [True, True]


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("Tell me a story about Pip the hedgehog.", ["Pip", "hedgehog"]),
        ("Hello", ["Hello!"]),
    ],
)
def test_it_answers_in_a_conversation(
    model: LlamaForCausalLM, codec: TextCodec, request_text: str, expected: list[str]
) -> None:
    ids = codec.apply_chat_template([{"role": "user", "content": request_text}])
    written = greedy(model, ids)
    text = codec.decode(written)
    assert written[-1] == model.config.eos_token_id
    assert [word for word in expected if word not in text] == []
    assert "<|" not in text


def test_a_quick_training_makes_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    script = EXAMPLES / "train_storyteller.py"
    arguments = ["--out", str(tmp_path), "--quick", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert len(losses) >= 2
    assert losses[-1] < losses[0]
    shipped = {file.name for file in STORYTELLER.iterdir()} - {"README.md"}
    assert {file.name for file in tmp_path.iterdir()} == shipped
    codec = TextCodec.load(tmp_path)
    assert codec is not None
    assert codec.has_chat_template
    assert codec.decode(codec.encode("A fox, \N{FOX FACE}!")) == "A fox, \N{FOX FACE}!"
