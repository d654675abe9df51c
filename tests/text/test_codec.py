"""Loading tokenizers, damaged ones too; encoding, decoding and chat templates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from dvrt.errors import ModelError, RequestRejected
from dvrt.models.text import TextCodec
from tests.text.vocabularies import word_level

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
ASKS = [{"role": "user", "content": "Tell me a story about a fox."}]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The storyteller's tokenizer in a directory of its own, to be damaged."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORYTELLER / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def storyteller() -> TextCodec:
    codec = TextCodec.load(STORYTELLER)
    assert codec is not None
    return codec


def rewrite(file: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(file.read_bytes())
    change(value)
    file.write_text(json.dumps(value))


def test_importing_the_codec_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import dvrt.models.text, sys;"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_many_threads_may_use_one_codec(storyteller: TextCodec) -> None:
    def use(n: int) -> bool:
        text = f"The {n}th fox met an owl. " * 20
        storyteller.apply_chat_template(ASKS)
        return all(storyteller.decode(storyteller.encode(text)) == text for _ in range(20))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(use, range(24)))


def test_ids_are_those_of_the_tokenizer_itself(storyteller: TextCodec) -> None:
    text = 'Once upon a time, Zuzu the hedgehog said "été 😀".\n\n<|endoftext|>'
    theirs = AutoTokenizer.from_pretrained(str(STORYTELLER))
    assert storyteller.encode(text) == theirs.encode(text)
    assert storyteller.decode(storyteller.encode(text)) == text.removesuffix("<|endoftext|>")


def test_ids_beyond_the_vocabulary_have_no_text(storyteller: TextCodec) -> None:
    ids = storyteller.encode("a cat")
    assert storyteller.decode([*ids, 2048, 151_935]) == "a cat"


def test_a_prompt_longer_than_the_model_is_encoded_without_a_word(
    storyteller: TextCodec, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(storyteller.encode("the " * 3000)) >= 3000
    assert capfd.readouterr().err == ""


def test_decoding_never_cleans_up_spaces() -> None:
    tokenizer = word_level(["a", " ,", " n't", " ."], None)
    tokenizer.clean_up_tokenization_spaces = True
    codec = TextCodec(tokenizer)
    assert codec.decode([0, 1, 2, 3]) == "a  ,  n't  ."


def test_text_that_is_not_unicode_is_refused(storyteller: TextCodec) -> None:
    with pytest.raises(RequestRejected, match="prompt is not valid Unicode"):
        storyteller.encode("a \ud800")
    with pytest.raises(RequestRejected, match="messages is not valid Unicode"):
        storyteller.apply_chat_template([{"role": "user", "content": "\udfff"}])


def test_a_conversation_becomes_the_prompt_of_its_next_answer(storyteller: TextCodec) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        *ASKS,
    ]
    expected = (
        "<|user|>\nHi\n<|assistant|>\nHello!<|endoftext|>\n"
        "<|user|>\nTell me a story about a fox.\n<|assistant|>\n"
    )
    assert storyteller.apply_chat_template(messages) == storyteller.encode(expected)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "tool", "content": "x"}], "not tool"),
        ([{"content": "x"}], "role"),
        ([], "empty conversation"),
    ],
)
def test_what_the_template_refuses_is_the_callers_error(
    storyteller: TextCodec, messages: list[dict[str, str]], reason: str
) -> None:
    with pytest.raises(RequestRejected, match=reason) as caught:
        storyteller.apply_chat_template(messages)
    assert caught.value.param == "messages"


def test_a_model_without_a_chat_template_says_so(directory: Path) -> None:
    rewrite(directory / "tokenizer_config.json", lambda config: config.pop("chat_template"))
    codec = TextCodec.load(directory)
    assert codec is not None
    assert not codec.has_chat_template
    with pytest.raises(RequestRejected, match="no chat template"):
        codec.apply_chat_template(ASKS)


def test_truncation_and_padding_in_the_file_are_switched_off(directory: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["truncation"] = {
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        value["padding"] = {
            "strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
        }  # fmt: skip

    rewrite(directory / "tokenizer.json", change)
    codec = TextCodec.load(directory)
    assert codec is not None
    assert codec.decode(codec.encode("a fox and a cat")) == "a fox and a cat"
    assert len(codec.encode("a fox and a cat")) < 40


def test_there_may_be_no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    assert TextCodec.load(directory) is None
    assert TextCodec.load(directory / "nowhere") is None


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("tokenizer.json", b"", "is not valid JSON"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"ty', "is not valid JSON"),
        ("tokenizer.json", bytes(range(256)), "is not valid JSON"),
        ("tokenizer.json", b"[]", "is not a JSON object"),
        ("tokenizer.json", b"{}", "cannot be loaded"),
        ("tokenizer_config.json", b'{"chat_template": "', "is not valid JSON"),
        ("tokenizer_config.json", b"[1, 2]", "is not a JSON object"),
    ],
)
def test_a_damaged_tokenizer_is_named(directory: Path, name: str, data: bytes, reason: str) -> None:
    (directory / name).write_bytes(data)
    with pytest.raises(ModelError) as caught:
        TextCodec.load(directory)
    assert str(caught.value).startswith(f"{directory / name} {reason}")


def test_a_fault_of_the_configuration_is_not_the_tokenizers(directory: Path) -> None:
    config = {"model_type": "llama", "rms_norm_eps": "x"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        TextCodec.load(directory)
    assert str(caught.value).startswith(f"{directory / 'config.json'}: ")
    assert "rms_norm_eps" in str(caught.value)


def test_nesting_without_end_is_no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"tokenizer\.json is not valid JSON"):
        TextCodec.load(directory)


def test_a_checkpoints_own_code_is_not_run(directory: Path) -> None:
    (directory / "evil.py").write_text("raise SystemExit('ran')")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="custom code"):
        TextCodec.load(directory)


def test_a_vocabulary_that_does_not_fit_its_merges_is_named(directory: Path) -> None:
    rewrite(directory / "tokenizer.json", lambda v: v["model"].update(vocab={"a": 0}))
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be loaded as a tokenizer: Token"):
        TextCodec.load(directory)
