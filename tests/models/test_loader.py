"""A stage reads its own tensors and no others; damage is named by file and tensor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dvrt.errors import ModelError, ProtocolError
from dvrt.models.check import inspect_checkpoint
from dvrt.models.checkpoint import read_tensor_index
from dvrt.models.runner import StageRunner
from dvrt.models.spec import StageSpec
from dvrt.models.tiny import FAMILIES, write_tiny
from dvrt.models.weights import read_tensor
from tests.models.pipeline import Pipeline

Checkpoint = Callable[[str], Path]
FILE = "model.safetensors"


@pytest.fixture
def copy(checkpoint: Checkpoint, tmp_path: Path) -> Callable[[str], Path]:
    def copied(family: str = "llama") -> Path:
        return Path(shutil.copytree(checkpoint(family), tmp_path / family))

    return copied


def load(directory: Path, first: int, stop: int, n_layers: int = 4) -> StageRunner:
    return StageRunner(
        StageSpec(
            directory=str(directory),
            first=first,
            stop=stop,
            n_layers=n_layers,
            dtype="float32",
            n_microbatches=1,
            batch_size=1,
            max_context=64,
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_a_stage(checkpoint: Checkpoint, family: str) -> None:
    model = inspect_checkpoint(checkpoint(family))
    for layers in ((0, 4), (0, 1), (1, 3), (3, 4)):
        stage = load(checkpoint(family), *layers)
        assert stage.weights_bytes == model.stage_bytes(layers, "float32")
        held = {id(p): p.nbytes for p in stage._forward.model.parameters()}
        assert sum(held.values()) == stage.weights_bytes


def test_kv_bytes(checkpoint: Checkpoint) -> None:
    stage = load(checkpoint("llama"), 1, 3)
    per_token = inspect_checkpoint(checkpoint("llama")).kv_bytes_per_token((1, 3), "float32")
    assert stage.kv_bytes == per_token * stage.arena.tokens == per_token * 128


def test_progress(checkpoint: Checkpoint) -> None:
    seen: list[tuple[int, int]] = []
    spec = load(checkpoint("llama"), 0, 2).spec
    stage = StageRunner(spec, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (stage.weights_bytes, stage.weights_bytes)
    assert seen == sorted(seen)


def test_dtype_of_the_stage(checkpoint: Checkpoint) -> None:
    whole = Pipeline(checkpoint("llama")).stages[0]
    half = Pipeline(checkpoint("llama"), dtype="bfloat16").stages[0]
    assert half.weights_bytes * 2 == whole.weights_bytes
    assert half.arena.storage.dtype == torch.bfloat16


def test_tied_head_without_a_tensor_of_its_own(checkpoint: Checkpoint) -> None:
    """The last of two stages loads the embeddings as its head."""
    assert "lm_head.weight" not in read_tensor_index(checkpoint("gpt2"))
    prompts = [[5, 9, 200]]
    one, two = Pipeline(checkpoint("gpt2"), 1), Pipeline(checkpoint("gpt2"), 2)
    assert one.generate(prompts, 6) == two.generate(prompts, 6)


def test_own_head_wins_over_a_tie(checkpoint: Checkpoint, copy: Callable[[str], Path]) -> None:
    directory = copy("gpt2")
    tensors = load_file(directory / FILE)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].flip(0).contiguous()
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    prompt = [5, 9, 200]
    tied = int(Pipeline(checkpoint("gpt2")).prompt(0, prompt).argmax())
    for n_stages in (1, 2):
        assert int(Pipeline(directory, n_stages).prompt(0, prompt).argmax()) == 306 - tied


@pytest.mark.parametrize("family", ["gpt2", "bloom", "opt"])
def test_names_without_the_base_models_prefix(
    checkpoint: Checkpoint, copy: Callable[[str], Path], family: str
) -> None:
    """As in the oldest files of these families."""
    directory = copy(family)
    prefix = "model." if family == "opt" else "transformer."
    tensors = {name.removeprefix(prefix): t for name, t in load_file(directory / FILE).items()}
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    prompts = [[5, 9, 200]]
    usual = Pipeline(checkpoint(family)).generate(prompts, 5)
    assert Pipeline(directory, 2).generate(prompts, 5) == usual


def test_shards(tmp_path: Path, checkpoint: Checkpoint) -> None:
    directory = write_tiny(tmp_path / "llama", "llama", max_shard="100KB")
    prompts = [[5, 9, 200]]
    usual = Pipeline(checkpoint("llama")).generate(prompts, 5)
    assert Pipeline(directory, 2).generate(prompts, 5) == usual


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(directory / FILE)
    change(tensors)
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    return directory


def test_missing_tensor(copy: Callable[[str], Path]) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    directory = rewrite(copy("llama"), lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"{name} is missing"):
        inspect_checkpoint(directory)
    with pytest.raises(ModelError, match=f"{name} is missing"):
        load(directory, 2, 4)
    load(directory, 0, 2)  # it has all that this stage needs


def test_wrong_shape(copy: Callable[[str], Path]) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    directory = rewrite(copy("llama"), lambda tensors: tensors.update({name: torch.zeros(32, 63)}))
    for judge in (inspect_checkpoint, lambda where: load(where, 0, 2)):
        with pytest.raises(ModelError, match=rf"{FILE}: tensor {name} has the shape \[32, 63\]"):
            judge(directory)


def test_end_tensors_that_are_missing_or_wrong(copy: Callable[[str], Path]) -> None:
    directory = rewrite(copy("llama"), lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        load(directory, 3, 4)
    rewrite(directory, lambda tensors: tensors.pop("lm_head.weight"))
    rewrite(directory, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64)}))
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        load(directory, 3, 4)
    rewrite(directory, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is missing"):
        inspect_checkpoint(directory)


def test_truncated_file(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    file = directory / FILE
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 1000)
    with pytest.raises(ModelError, match=rf"{FILE}: truncated: tensor \S+ ends at byte"):
        inspect_checkpoint(directory)


def test_file_that_shrinks_after_it_was_judged(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    entry = max(read_tensor_index(directory).values(), key=lambda entry: entry.offset)
    with (directory / FILE).open("r+b") as handle:
        handle.truncate(entry.offset + 8)
    with pytest.raises(ModelError, match=f"truncated: tensor {entry.name}.* 8 are there"):
        read_tensor(entry, torch.float32, torch.device("cpu"))
    (directory / FILE).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_tensor(entry, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, or not a safetensors file"),
        (b"\xff" * 64, "truncated, or not a safetensors file"),
        ((4).to_bytes(8, "little") + b"nope", "its header is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "the header of tensor a makes no sense"),
    ],
)
def test_rubbish_in_the_place_of_weights(
    copy: Callable[[str], Path], content: bytes, message: str
) -> None:
    directory = copy("llama")
    (directory / FILE).write_bytes(content)
    with pytest.raises(ModelError, match=f"{FILE}.*{message}"):
        inspect_checkpoint(directory)


def header_of(directory: Path) -> dict[str, dict[str, object]]:
    data = (directory / FILE).read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_header_that_lies(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    data = (directory / FILE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    for change, message in (
        ({"shape": [1, 2]}, "needs 8 bytes"),
        ({"dtype": "F12"}, "unknown type 'F12'"),
        ({"dtype": "F8_E4M3", "shape": [64, 4]}, "quantised"),
    ):
        header = json.loads(data[8 : 8 + size])
        header["model.norm.weight"].update(change)
        raw = json.dumps(header).encode()
        (directory / FILE).write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + size :])
        with pytest.raises(ModelError, match=message):
            inspect_checkpoint(directory)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model-00009-of-00009.safetensors", "the file is missing"),
        ("../elsewhere.safetensors", "which is no file name"),
        (7, "which is no file name"),
    ],
)
def test_index_that_lies(tmp_path: Path, file: object, message: str) -> None:
    directory = write_tiny(tmp_path / "llama", "llama", n_layers=2, max_shard="100KB")
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = file
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        inspect_checkpoint(directory)
    content["weight_map"] = {}
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="no weight_map"):
        inspect_checkpoint(directory)


def test_index_with_a_tensor_in_the_wrong_shard(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "llama", "llama", n_layers=2, max_shard="100KB")
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    names = content["weight_map"]
    other = next(file for file in names.values() if file != names["model.norm.weight"])
    names["model.norm.weight"] = other
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"{other}: tensor model\.norm\.weight is missing"):
        inspect_checkpoint(directory)


def test_settings_that_transformers_refuses(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "hidden_act": "nonsense"}))
    with pytest.raises(ModelError, match="cannot build it"):
        load(directory, 0, 4)
    with pytest.raises(ModelError, match="4 layers, and 6 were announced"):
        load(directory, 0, 4, n_layers=6)


def test_damaged_weights_are_noticed(copy: Callable[[str], Path]) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    directory = rewrite(copy("llama"), lambda tensors: tensors[name].fill_(float("nan")))
    with pytest.raises(ModelError, match="non-finite values"):
        load(directory, 0, 2)


def test_calls_that_break_the_rules(checkpoint: Checkpoint) -> None:
    pipeline = Pipeline(checkpoint("llama"), 2, batch_size=2, max_context=128)
    first, last = pipeline.stages
    for call in (
        lambda: first.decode(1, [0, 0], [1, 1]),
        lambda: first.decode(0, [0], [1]),
        lambda: first.decode(0, [128, 0], [1, 1]),
        lambda: first.decode(0, [-2, 0], [1, 1]),
        lambda: first.decode(0, [-1, -1], [1, 1]),
        lambda: first.chunk(2, 0, 1, [1]),
        lambda: first.chunk(0, 1, 1, [1]),
        lambda: first.chunk(0, 0, 65, [1] * 65),
        lambda: first.chunk(0, 64, 65, [1] * 65),
        lambda: first.chunk(0, 0, 0, []),
        lambda: first.chunk(0, 0, 3, [1, 2]),
        lambda: first.decode(0, [0, 0], [1]),
        lambda: last.decode(0, [0, 0], bytearray(7)),
        lambda: last.chunk(0, 0, 2, bytearray(64 * 4)),
    ):
        with pytest.raises(ProtocolError):
            call()


def test_resident_memory_of_a_stage(tmp_path: Path) -> None:
    """Of a checkpoint of several hundred MB, a process holds the stage's part and little more."""
    directory = write_tiny(
        tmp_path / "large",
        "llama",
        n_layers=8,
        hidden_size=768,
        n_heads=12,
        vocab_size=8000,
        settings={"num_key_value_heads": 12},
    )
    total = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    assert total > 200 << 20
    code = f"""
import psutil
from dvrt.models.runner import StageRunner
from dvrt.models.spec import StageSpec
from dvrt.models.tiny import make_tiny
make_tiny("llama", n_layers=1)  # what torch needs at first use is no stage's
process = psutil.Process()
before = process.memory_info().rss
stage = StageRunner(StageSpec(directory={str(directory)!r}, first=3, stop=5, n_layers=8,
    dtype="float32", n_microbatches=1, batch_size=1, max_context=64))
print(process.memory_info().rss - before, stage.weights_bytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=50, capture_output=True, text=True
    )
    grown, weights = (int(word) for word in done.stdout.split()[-2:])
    assert weights < 0.3 * total
    assert grown < weights + (40 << 20)
