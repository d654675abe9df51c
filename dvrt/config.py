"""The options of a launch, each declared once.

Says nothing of how they are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dvrt.errors import ConfigError
from dvrt.options import make_options, option, read_toml

_DEVICE = re.compile(r"auto|cpu|null|cuda(:\d+)?")


def _about_device(value: str) -> str | None:
    return None if _DEVICE.fullmatch(value) else "expected auto, cpu, cuda, cuda:N or null"


def _about_layers(value: tuple[int, ...]) -> str | None:
    return None if value and min(value) >= 1 else "every stage holds at least one layer"


def _about_model(value: str) -> str | None:
    return None if value else "expected the directory of a checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """Everything ``dvrt.launch``, ``python -m dvrt launch`` and a TOML file can say.

    Use ``make`` or ``from_toml``: they convert and check. The constructor takes values as they are.
    """

    model: str = option(help="directory of a Hugging Face causal-LM checkpoint", check=_about_model)
    stages: int | None = option(
        None,
        help="pipeline stages, one worker each",
        otherwise="as many as layers names, else 1",
        low=1,
        high=4096,
    )
    layers: tuple[int, ...] | None = option(
        None,
        help="layers of each stage, such as 4,4,2",
        otherwise="as even as the count allows",
        check=_about_layers,
    )
    microbatches: int | None = option(
        None,
        help="microbatches in flight, at least one a stage",
        otherwise="stages + 1",
        low=1,
        high=65536,
    )
    batch_size: int = option(8, help="rows of a microbatch", low=1, high=65536)
    prompt_stages: int | None = option(
        None,
        help="stages of a pipeline of their own for prompts; needs token_stages",
        otherwise="one pipeline for both",
        low=1,
        high=4096,
    )
    token_stages: int | None = option(
        None,
        help="stages of a pipeline of their own for tokens; needs prompt_stages",
        otherwise="one pipeline for both",
        low=1,
        high=4096,
    )
    prompt_batch_size: int | None = option(
        None,
        help="rows of a microbatch in the prompt pipeline",
        otherwise="batch_size",
        low=1,
        high=65536,
    )
    prompt_microbatches: int | None = option(
        None,
        help="microbatches in flight in the prompt pipeline",
        otherwise="prompt_stages + 1",
        low=1,
        high=65536,
    )
    max_context: int | None = option(
        None,
        help="longest prompt and output together",
        otherwise="the model's limit, 2048 at most",
        unit="tokens",
        low=1,
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:N or null", check=_about_device)
    dtype: str = option(
        "auto",
        help="number format; auto is float32 on the CPU, else the checkpoint's",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = option(1, help="compute threads of a worker", low=1, high=1024)
    exact: bool = option(True, help="the same logits bit by bit, whatever shares the batch")
    chunk_tokens: int = option(64, help="prompt positions of one step", unit="tokens", low=1)
    swap: bool = option(False, help="keep in host memory the microbatches that do not compute")
    device_slots: int = option(
        2, help="microbatches whose KV cache is on the device, with swap", low=1, high=65536
    )
    swap_anyway: bool = option(
        False, help="swap even where that is found to cost far more than it brings"
    )
    kv_memory: int | None = option(
        None,
        help="most memory of a stage's device for the KV cache, such as 2GiB",
        otherwise="what the shape needs",
        is_size=True,
        low=1,
    )
    swap_bandwidth: int = option(
        0,
        help="bytes a second between device and host, such as 8GB, with swap; 0 is no limit",
        is_size=True,
        low=0,
    )
    replicas: int | None = option(
        None,
        help="workers that keep a copy of each stage's KV cache",
        otherwise="1 with two workers or more",
        low=0,
        high=64,
    )
    replica_memory: int | None = option(
        None,
        help="most host memory of a worker for copies of others' KV cache, such as 4GiB",
        otherwise="no limit",
        is_size=True,
        low=1,
    )
    spares: int = option(0, help="workers that wait to replace a lost one", low=0, high=4096)
    max_deaths: int = option(
        5, help="losses of one worker's place within a minute before it is given up", low=0
    )
    max_queue: int = option(512, help="requests that may wait before new ones are refused", low=0)
    loop: str = option("auto", help="event loop", choices=("auto", "uvloop", "asyncio"))
    host: str = option("127.0.0.1", help="address that the HTTP server listens on")
    port: int = option(8000, help="port of the HTTP server; 0 picks a free one", low=0, high=65535)
    api_key: str | None = option(
        None, help="key that HTTP clients must send", is_secret=True, env="DVRT_API_KEY"
    )
    served_name: str | None = option(None, help="model name over HTTP", otherwise="the directory's")
    start_limit_s: float = option(300.0, help="limit for start-up", unit="seconds", low=0.1)
    drain_limit_s: float = option(
        30.0, help="limit for running requests to end at shutdown", unit="seconds", low=0.0
    )
    heartbeat_s: float = option(0.2, help="time between heartbeats", unit="seconds", low=0.01)
    heartbeat_misses: int = option(4, help="heartbeats missed before a worker is dead", low=1)
    lease_s: float = option(
        5.0, help="a worker ends when it has heard nothing for this long", unit="seconds", low=0.1
    )
    step_limit_s: float = option(
        300.0,
        help="a worker whose stage computes one thing for longer is stuck, and replaced; 0: never",
        unit="seconds",
        low=0.0,
    )
    null_step_ms: float = option(
        5.0, help="time of a step on the null device", unit="milliseconds", low=0.0
    )
    null_timing: str | None = option(
        None,
        help="TOML file of step times on the null device, in place of null_step_ms",
    )
    in_process: bool = option(False, help="run the workers as tasks of this process")
    control_host: str = option("127.0.0.1", help="address where workers that join by hand connect")
    control_port: int = option(
        0,
        help="port where workers that join by hand connect; 0 picks a free one",
        low=0,
        high=65535,
    )
    external_workers: int = option(0, help="stages whose workers join by hand", low=0)
    secret: str | None = option(
        None,
        help="secret of the cluster's internal ports",
        otherwise="a fresh random one",
        is_secret=True,
        env="DVRT_SECRET",
    )
    journal: str | None = option(
        None,
        help="file of requests and their tokens, for a launch that follows to go on with them",
        otherwise="DIR/journal.db with persist, else none",
    )
    persist: str | None = option(
        None, help="directory where the KV cache is kept as well, against the loss of all workers"
    )
    reattach: float = option(
        60.0,
        help="with a journal, how long a request goes on without its client",
        unit="seconds",
        low=0.0,
    )
    orphan_grace: float = option(
        0.0,
        help="with a journal, how long workers whose controller was killed wait for the next one",
        unit="seconds",
        low=0.0,
    )
    trace: str | None = option(None, help="write a Chrome trace of the run to this file")

    @classmethod
    def make(cls, **values: Any) -> Self:
        """Options from keywords. Raises ConfigError: an unknown key, a value that cannot work."""
        return make_options(cls, values)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **overrides: Any) -> Self:
        """Options from a TOML file's keys; ``overrides`` win. Raises ConfigError as ``make``."""
        return cls.make(**{**read_toml(path), **overrides})

    @property
    def is_split(self) -> bool:
        """Whether prompts and tokens have a pipeline each."""
        return self.prompt_stages is not None

    @property
    def n_stages(self) -> int:
        """How many stages the pipeline has; of two, the one for tokens."""
        return self.token_stages or self.stages or len(self.layers or (1,))

    @property
    def n_workers(self) -> int:
        """How many workers hold a stage; spares come on top."""
        return self.n_stages + (self.prompt_stages or 0)

    @property
    def n_replicas(self) -> int:
        """How many copies of each log are kept, as far as there are other workers."""
        return self.replicas if self.replicas is not None else int(self.n_workers > 1)

    @property
    def n_microbatches(self) -> int:
        """How many microbatches are in flight; one more than stages keeps every stage fed."""
        return self.microbatches or self.n_stages + 1

    @property
    def journal_path(self) -> Path | None:
        """Where the journal is, if there is one."""
        if self.journal is not None:
            return Path(self.journal).expanduser()
        return None if self.persist is None else Path(self.persist).expanduser() / "journal.db"

    @property
    def persist_directory(self) -> str:
        """Where the KV cache is kept, in full; empty without."""
        return str(Path(self.persist).expanduser().absolute()) if self.persist else ""

    @property
    def silence_s(self) -> float:
        """A worker that was not heard for longer is lost."""
        return self.heartbeat_s * self.heartbeat_misses

    def check(self) -> None:
        """Raise ConfigError for values that are fine alone and cannot work together."""
        for fault in self._faults():
            raise ConfigError(fault)

    def _faults(self) -> Iterator[str]:
        if self.layers is not None and len(self.layers) != self.n_stages:
            yield (
                f"layers is {','.join(map(str, self.layers))}, which is {len(self.layers)} stages; "
                f"stages is {self.stages}"
            )
        if self.microbatches is not None and self.microbatches < self.n_stages:
            yield (
                f"microbatches is {self.microbatches}; {self.n_stages} stages need at least "
                f"{self.n_stages} to be busy"
            )
        if self.orphan_grace and self.journal_path is None:
            yield f"orphan_grace is {self.orphan_grace:g}; it needs journal or persist"
        yield from self._split_faults()
        if self.external_workers > self.n_workers:
            yield f"external_workers is {self.external_workers}; there are {self.n_workers} stages"
        if self.external_workers and not (self.control_port and self.secret):
            missing = "secret" if self.control_port else "control_port"
            yield f"external_workers is {self.external_workers}; they need {missing} to join"
        if self.control_host in ("0.0.0.0", "::"):
            yield f"control_host is {self.control_host}; give the address that workers reach"
        if self.external_workers and self.in_process:
            yield f"external_workers is {self.external_workers}; in_process leaves room for none"
        if self.silence_s > self.lease_s:
            yield (
                f"lease_s is {self.lease_s:g}; at least heartbeat_s times heartbeat_misses, "
                f"{self.silence_s:g}"
            )

    def _split_faults(self) -> Iterator[str]:
        if (self.prompt_stages is None) != (self.token_stages is None):
            given = "prompt_stages" if self.is_split else "token_stages"
            missing = "token_stages" if self.is_split else "prompt_stages"
            yield f"{given} is {getattr(self, given)}; it needs {missing} beside it"
        for name in ("stages", "layers") if self.is_split else ():
            if getattr(self, name) is not None:
                yield f"{name} is {getattr(self, name)}; leave it out beside prompt_stages"
        for name in ("prompt_batch_size", "prompt_microbatches"):
            if getattr(self, name) is not None and not self.is_split:
                yield f"{name} is {getattr(self, name)}; it needs prompt_stages and token_stages"
        wanted, stages = self.prompt_microbatches, self.prompt_stages
        if wanted is not None and stages is not None and wanted < stages:
            yield (
                f"prompt_microbatches is {wanted}; {stages} prompt stages need at least {stages} "
                "to be busy"
            )
        if self.swap_bandwidth and not self.swap:
            yield f"swap_bandwidth is {self.swap_bandwidth}; it needs swap"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What ``python -m dvrt worker`` can say; all else is the launching process's to decide."""

    join: str = option(help="HOST:PORT of the process that launched the pipeline")
    secret: str = option(help="the cluster's secret", is_secret=True, env="DVRT_SECRET")
    wait_s: float = option(30.0, help="how long to wait for that process", unit="seconds", low=0.0)
    heartbeat_s: float = option(0.2, help="time between heartbeats", unit="seconds", low=0.01)
    lease_s: float = option(
        5.0, help="end when that process was not heard for this long", unit="seconds", low=0.1
    )
    loop: str = option("auto", help="event loop", choices=("auto", "uvloop", "asyncio"))

    def check(self) -> None:
        """Raise ConfigError for an address that is not HOST:PORT."""
        self.address()

    def address(self) -> tuple[str, int]:
        """``join`` in two; an IPv6 host stands in brackets."""
        host, _, port = self.join.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"join is {self.join!r}; expected HOST:PORT")
        return host.removeprefix("[").removesuffix("]"), int(port)
