"""The options of a launch, each declared once.

Says nothing of how they are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
    max_context: int | None = option(
        None,
        help="longest prompt and output together",
        otherwise="the model's limit",
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
    null_step_ms: float = option(
        5.0, help="time of a step on the null device", unit="milliseconds", low=0.0
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
    def n_stages(self) -> int:
        """How many stages the pipeline has."""
        return self.stages or len(self.layers or (1,))

    @property
    def n_microbatches(self) -> int:
        """How many microbatches are in flight; one more than stages keeps every stage fed."""
        return self.microbatches or self.n_stages + 1

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
        if self.external_workers > self.n_stages:
            yield f"external_workers is {self.external_workers}; there are {self.n_stages} stages"
        if self.external_workers and not (self.control_port and self.secret):
            missing = "secret" if self.control_port else "control_port"
            yield f"external_workers is {self.external_workers}; they need {missing} to join"
        if self.control_host in ("0.0.0.0", "::"):
            yield f"control_host is {self.control_host}; give the address that workers reach"
        if self.external_workers and self.in_process:
            yield f"external_workers is {self.external_workers}; in_process leaves room for none"
        if self.heartbeat_s * self.heartbeat_misses > self.lease_s:
            yield (
                f"lease_s is {self.lease_s:g}; at least heartbeat_s times heartbeat_misses, "
                f"{self.heartbeat_s * self.heartbeat_misses:g}"
            )


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
