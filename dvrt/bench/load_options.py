"""What ``bench load`` is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dvrt.bench.workload import Length, Planned, plan_requests, read_trace
from dvrt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What to send where. ``model`` None: the first that the server offers.

    ``trace`` replaces ``prompt_tokens`` and ``output_tokens``, and where it has arrivals also the
    rate; ``n_requests`` None then means all of it. ``ignore_eos`` asks for all output tokens with
    an extension that dvrt and vLLM know. Prompts are token ids in [first_id, stop_id) or words.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    rate_per_s: float = 1.0
    n_requests: int | None = None
    trace: Path | None = None
    prompt_tokens: int = 128
    output_tokens: int = 64
    prompts: Literal["ids", "text"] = "ids"
    first_id: int = 10
    stop_id: int = 100
    chat: bool = False
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int = 0
    limit_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url is {self.url!r}; it must begin with http:// or https://")
        if self.prompts not in ("ids", "text"):
            raise ConfigError(f"prompts is {self.prompts!r}; it must be ids or text")
        if self.chat and self.prompts == "ids":
            raise ConfigError("chats take text; choose prompts = text")
        if min(self.prompt_tokens, self.output_tokens) < 1:
            raise ConfigError("prompt_tokens and output_tokens must be at least 1")
        if not 0 <= self.first_id < self.stop_id:
            raise ConfigError(f"no token ids in [{self.first_id}, {self.stop_id})")
        if not 0 < self.limit_s < math.inf:
            raise ConfigError(f"limit_s is {self.limit_s}; it must be above 0")

    @property
    def base_url(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    def plan(self) -> list[Planned]:
        """The requests, in order of arrival. Raises ConfigError."""
        lengths = [Length(n_prompt=self.prompt_tokens, n_output=self.output_tokens)]
        n_default = 100
        if self.trace is not None:
            lengths = read_trace(self.trace)
            n_default = len(lengths)
        n_requests = self.n_requests if self.n_requests is not None else n_default
        return plan_requests(
            lengths, n_requests=n_requests, rate_per_s=self.rate_per_s, seed=self.seed
        )
