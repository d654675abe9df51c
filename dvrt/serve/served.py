"""What the HTTP side needs of an engine; ``dvrt.launch`` gives one, tests have their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from dvrt.observe.metrics import Metrics
from dvrt.results import ModelCard, Status, Token


class Codec(Protocol):
    """Text to token ids and back; may be called from several threads at once."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """What a token adds to a text that has begun; None where that is not known."""
        ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


class Served(Protocol):
    """An engine as the HTTP side sees it; ``text`` is None for a checkpoint without tokenizer."""

    @property
    def model(self) -> ModelCard: ...

    @property
    def text(self) -> Codec | None: ...

    @property
    def metrics(self) -> Metrics: ...

    def generate(
        self, prompt: str | Sequence[int], **options: Any
    ) -> AsyncGenerator[Token, None]: ...

    @property
    def is_journalled(self) -> bool: ...

    async def knows(self, request_id: str) -> bool: ...

    def resume(
        self,
        request_id: str,
        *,
        from_index: int = 0,
        prompt_ids: Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Token, None]: ...

    def status(self) -> Status: ...

    def is_healthy(self) -> bool: ...

    async def rebalance(
        self,
        *,
        prompt_stages: int | None = None,
        token_stages: int | None = None,
        stages: int | None = None,
    ) -> None: ...

    async def drain(self, limit_s: float) -> None: ...
