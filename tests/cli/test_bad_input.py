"""What people get wrong, through the real command: one clear line, the right code, no process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dvrt.models.tiny import write_tiny

HOUSE = Path(__file__).parents[2]
ASK = ("--prompt-ids", "1,2", "--max-tokens", "2")
NULL = ("--device", "null")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("bad") / "good", "llama", n_layers=3)


def launch(model: Path | str, *words: str) -> tuple[int, str]:
    """Exit code and what a person reads on stderr, the progress of workers left out."""
    done = subprocess.run(
        [sys.executable, "-m", "dvrt", "launch", str(model), *words],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=HOUSE,
        check=False,
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("worker-")]
    return done.returncode, "\n".join(lines)


def config(**changes: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "an encoder": (config(model_type="bert", architectures=["BertModel"]), "not a causal LM"),
    "an encoder and decoder": (
        config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "not a causal LM",
    ),
    "code of its own": (config(auto_map={"AutoModelForCausalLM": "x.Y"}), "never run"),
    "a sliding window": (
        config(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=64),
        "sliding-window",
    ),
    "truncated weights": (truncate, "model.safetensors: truncated: tensor model.layers"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "neither"),
    "a temperature that no request may have": (
        lambda model: (model / "generation_config.json").write_text('{"temperature": 200}'),  # type: ignore[dict-item]
        "generation_config.json: temperature is 200; it must be at least 0 and at most 100",
    ),
    "fewer layers than weights": (
        config(num_hidden_layers=2),
        "config.json: num_hidden_layers is 2; the checkpoint has 3 layers",
    ),
    "no configuration": (lambda model: (model / "config.json").unlink(), "no config.json"),
    "not JSON": (lambda model: (model / "config.json").write_text("{no"), "config.json: not JSON"),
    "a damaged tokenizer": (
        lambda model: (model / "tokenizer.json").write_text("{no"),  # type: ignore[dict-item]
        "tokenizer.json is not valid JSON",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_served_is_refused_by_name(
    good: Path, tmp_path: Path, damage: str
) -> None:
    model = shutil.copytree(good, tmp_path / "model")
    break_it, text = DAMAGES[damage]
    break_it(model)
    code, said = launch(model, *ASK, *NULL)
    assert code == 1
    assert text in said
    assert str(model) in said
    assert said.count("\n") == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"intermediate_size": 100}, "mlp.gate_proj.weight has the shape [128, 64]"),
        ({"hidden_act": "nonsense"}, "nonsense"),
    ],
)
def test_what_only_a_worker_can_find_is_named_too(
    good: Path, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    model = shutil.copytree(good, tmp_path / "model")
    config(**change)(model)
    code, said = launch(model, *ASK, "--stages", "2")
    assert code == 1
    assert text in said.splitlines()[-1]
    assert said.splitlines()[-1].startswith("dvrt: ")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((*ASK, "--stages", "4"), 2, "stages is 4; the model has only 3 layers"),
        ((*ASK, "--prompt-stages", "9", "--token-stages", "1"), 2, "prompt_stages is 9; the model"),
        ((*ASK, "--layers", "1,1"), 2, "2 in all; the model has 3"),
        ((*ASK, "--stages", "2", "--microbatches", "1"), 2, "2 stages need at least 2"),
        ((*ASK, "--max-context", "9999"), 2, "max_context is 9999; good has 512 positions"),
        ((*ASK, "--dtype", "int3"), 2, "choose from auto, float32"),
        ((*ASK, "--temperature", "nan"), 2, "temperature is nan"),
        ((*ASK, "--top-p", "-1"), 2, "top_p is -1"),
        ((*ASK, "--seed", str(1 << 64)), 2, "seed is 18446744073709551616; it must be"),
        ((*ASK, "--persist", "/proc/x"), 2, "persist is '/proc/x'; /proc/x cannot be made"),
        ((*ASK, "--stop", ""), 2, "stop is ''"),
        (("--port", "0", "--host", "a..b"), 2, "host is 'a..b', which is no name"),
        (("--port", "0", "--api-key", ""), 2, "api_key is empty"),
        (("--port", "0", "--ignore-eos"), 2, "ignore_eos is given without a prompt"),
        (("--prompt", ""), 2, "prompt is ''; it is empty"),
        (("--prompt", "hello"), 1, "good has no tokenizer; send token ids"),
        (("--prompt-ids", "1,99999"), 1, "token id 99999 is outside the vocabulary [0, 307)"),
        (("--prompt-ids", ",".join(["1"] * 600)), 1, "512 tokens; the prompt has 600"),
    ],
)
def test_options_that_cannot_be_are_refused(
    good: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    found, said = launch(good, *words, *NULL)
    assert found == code
    assert text in said
    assert said.count("\n") == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_before_anything_starts(good: Path) -> None:
    text = "dvrt: device is cuda:1; PyTorch sees 0 CUDA devices here"
    assert launch(good, *ASK, "--device", "cuda:1") == (2, text)


def test_a_configuration_that_is_at_fault_is_named_and_not_the_tokenizer(tmp_path: Path) -> None:
    """By a worker or by the launch, whoever reads it first."""
    model = shutil.copytree(HOUSE / "examples" / "storyteller", tmp_path / "model")
    config(rms_norm_eps="x")(model)
    code, said = launch(model, "--prompt", "a", "--max-tokens", "1")
    assert code == 1
    assert "config.json" in said
    assert "rms_norm_eps" in said
    assert "tokenizer.json" not in said


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert launch(tmp_path / "no", *ASK) == (1, f"dvrt: {tmp_path / 'no'}: no such directory")


def test_a_port_that_is_taken_is_named_before_anything_starts(good: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = launch(good, *NULL, "--port", str(port))
    assert code == 2
    assert str(port) in said
    assert "in use" in said


def test_a_misspelt_option_names_the_nearest(good: Path, tmp_path: Path) -> None:
    code, said = launch(good, "--stagse", "2")
    assert code == 2
    assert "--stages" in said
    settings = tmp_path / "launch.toml"
    settings.write_text("stagse = 2\n")
    code, said = launch(good, "--config", str(settings))
    assert code == 2
    assert "stages" in said


def test_nothing_of_all_this_is_left() -> None:
    children = psutil.Process(os.getpid()).children(recursive=True)
    assert not [child for child in children if "dvrt" in " ".join(child.cmdline())]
