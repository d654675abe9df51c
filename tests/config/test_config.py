"""LaunchOptions and WorkerOptions: what fits together, and what a TOML file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.config import LaunchOptions, WorkerOptions
from dvrt.errors import ConfigError
from dvrt.options import make_options, options_of


def test_defaults_serve_one_stage() -> None:
    options = LaunchOptions.make(model="m")
    assert (options.n_stages, options.n_microbatches) == (1, 2)
    assert options.host == "127.0.0.1"


def test_layers_say_how_many_stages() -> None:
    assert LaunchOptions.make(model="m", layers=(4, 4, 2)).n_stages == 3
    assert LaunchOptions.make(model="m", stages=3).n_microbatches >= 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": 0}, "stages is 0; at least 1"),
        ({"stages": 2, "layers": "1,2,3"}, "layers is 1,2,3, which is 3 stages; stages is 2"),
        ({"layers": "4,0"}, "every stage holds at least one layer"),
        ({"stages": 3, "microbatches": 2}, "microbatches is 2; 3 stages need at least 3"),
        ({"device": "gpu"}, "device is 'gpu'; expected auto, cpu, cuda, cuda:N or null"),
        ({"dtype": "fp16"}, "dtype is 'fp16'; choose from .*; did you mean 'float16'"),
        ({"port": 65536}, "port is 65536; at most 65535"),
        ({"model": ""}, "model is ''; expected the directory"),
        ({"lease_s": 0.5}, "lease_s is 0.5; at least heartbeat_s times heartbeat_misses, 0.8"),
        ({"external_workers": 1}, "external_workers is 1; they need control_port to join"),
        ({"external_workers": 1, "control_port": 5}, "they need secret to join"),
        (
            {"external_workers": 2, "control_port": 5, "secret": "x"},
            "external_workers is 2; there are 1 stages",
        ),
        (
            {"external_workers": 1, "control_port": 5, "secret": "x", "in_process": True},
            "in_process leaves room for none",
        ),
        ({"prompt_stages": 2}, "prompt_stages is 2; it needs token_stages beside it"),
        ({"token_stages": 2}, "token_stages is 2; it needs prompt_stages beside it"),
        (
            {"prompt_stages": 1, "token_stages": 1, "stages": 2},
            "stages is 2; leave it out beside prompt_stages",
        ),
        (
            {"prompt_stages": 1, "token_stages": 1, "layers": "2"},
            r"layers is \(2,\); leave it out beside prompt_stages",
        ),
        ({"prompt_batch_size": 2}, "prompt_batch_size is 2; it needs prompt_stages"),
        (
            {"prompt_stages": 3, "token_stages": 1, "prompt_microbatches": 2},
            "prompt_microbatches is 2; 3 prompt stages need at least 3",
        ),
        (
            {"prompt_stages": 1, "token_stages": 3, "microbatches": 2},
            "microbatches is 2; 3 stages need at least 3",
        ),
        ({"swap_bandwidth": "8GB"}, "swap_bandwidth is 8000000000; it needs swap"),
        ({"device_slots": 0}, "device_slots is 0; at least 1"),
        ({"kv_memory": "2 elephants"}, "kv_memory is '2 elephants'; expected a size"),
        ({"stage": 2}, "unknown option 'stage'; did you mean 'stages'"),
        ({"max_contxt": 2}, "did you mean 'max_context'"),
    ],
)
def test_refusals(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LaunchOptions.make(**{"model": "m", **values})


def test_a_split_has_the_workers_of_both_pipelines() -> None:
    options = LaunchOptions.make(model="m", prompt_stages=2, token_stages=3, spares=4)
    assert (options.n_stages, options.n_workers, options.n_microbatches) == (3, 5, 4)


@pytest.mark.parametrize(
    ("values", "n_replicas"),
    [
        ({}, 0),
        ({"stages": 2}, 1),
        ({"prompt_stages": 1, "token_stages": 1}, 1),
        ({"stages": 2, "replicas": 0}, 0),
        ({"replicas": 3}, 3),
    ],
)
def test_copies_are_kept_where_there_are_two_workers(
    values: dict[str, int], n_replicas: int
) -> None:
    assert LaunchOptions.make(model="m", **values).n_replicas == n_replicas


def test_a_silent_worker_is_noticed_within_a_second_by_default() -> None:
    assert LaunchOptions.make(model="m").silence_s < 1


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:11", "null"])
def test_devices(device: str) -> None:
    assert LaunchOptions.make(model="m", device=device).device == device


def test_toml_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "launch.toml"
    file.write_text('model = "m"\nstages = 2\nlayers = [3, 1]\nbatch-size = 4\nexact = false\n')
    options = LaunchOptions.from_toml(file, batch_size=16)
    assert (options.stages, options.layers, options.batch_size) == (2, (3, 1), 16)
    assert options.exact is False
    file.write_text('model = "m"\nbatchsize = 4\n')
    with pytest.raises(ConfigError, match="unknown option 'batchsize'; did you mean 'batch_size'"):
        LaunchOptions.from_toml(file)
    file.write_text("[model]\nname = 3\n")
    with pytest.raises(ConfigError, match="model is .*; expected text"):
        LaunchOptions.from_toml(file)


@pytest.mark.parametrize("cls", [LaunchOptions, WorkerOptions])
def test_every_option_has_help_and_a_default_that_it_accepts(cls: type) -> None:
    for each in options_of(cls).values():
        assert each.help
        assert not each.help.endswith(".")
        if not each.is_required:
            assert each.take(each.default) == each.default


@pytest.mark.parametrize(
    ("join", "address"),
    [("a:1", ("a", 1)), ("10.0.0.2:65535", ("10.0.0.2", 65535)), ("[::1]:80", ("::1", 80))],
)
def test_worker_addresses(join: str, address: tuple[str, int]) -> None:
    assert make_options(WorkerOptions, {"join": join, "secret": "x"}).address() == address


@pytest.mark.parametrize("join", ["", "host", "host:", ":80", "host:0", "host:70000", "host:x"])
def test_bad_worker_addresses(join: str) -> None:
    with pytest.raises(ConfigError, match="join is .*; expected HOST:PORT"):
        make_options(WorkerOptions, {"join": join, "secret": "x"})


def test_a_worker_needs_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVRT_SECRET", raising=False)
    with pytest.raises(ConfigError, match="secret is missing"):
        make_options(WorkerOptions, {"join": "a:1"})
    monkeypatch.setenv("DVRT_SECRET", "x")
    assert make_options(WorkerOptions, {"join": "a:1"}).secret == "x"
