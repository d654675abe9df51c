"""What is known of a checkpoint before any tensor is loaded, and what one stage of it is.

Plain values: the planner, the scheduler and the workers speak of models through these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from dvrt.errors import ConfigError
from dvrt.extents import EXTENT_TOKENS as EXTENT_TOKENS
from dvrt.wire import message

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DEFAULT_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What generation_config.json says; None where it says nothing."""

    eos_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One checkpoint that can be served.

    ``dtype`` is the type it was saved in. ``max_positions`` is None for a model without a limit
    (ALiBi). Beyond ``rope_bound`` the rope type rewrites the keys of old positions. ``*_params``
    count elements: of each layer, of the first stage's embeddings, of the last stage's norm and
    head; ``tied_params`` are those that stand in both (each of the two stages loads its own copy).
    """

    directory: Path
    family: str
    causal_class: str
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    key_dim: int
    value_dim: int
    vocab_size: int
    dtype: str
    max_positions: int | None
    rope_bound: int | None
    defaults: GenerationDefaults
    layer_params: tuple[int, ...]
    embedding_params: int
    head_params: int
    tied_params: int

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def n_params(self) -> int:
        """All elements, each once."""
        ends = self.embedding_params + self.head_params - self.tied_params
        return sum(self.layer_params) + ends

    def kv_bytes_per_token(self, layers: tuple[int, int], dtype: str) -> int:
        """Bytes of the entry of one position in the layers [first, stop)."""
        width = self.n_kv_heads * (self.key_dim + self.value_dim)
        return (layers[1] - layers[0]) * width * DTYPE_BYTES[dtype]

    def stage_bytes(self, layers: tuple[int, int], dtype: str) -> int:
        """Bytes of the weights that a stage with the layers [first, stop) holds."""
        first, stop = layers
        n_params = sum(self.layer_params[first:stop])
        n_params += self.embedding_params if first == 0 else 0
        n_params += self.head_params if stop == self.n_layers else 0
        n_params -= self.tied_params if layers == (0, self.n_layers) else 0
        return n_params * DTYPE_BYTES[dtype]

    def context(self, wanted: int | None = None) -> int:
        """The context to serve with: ``wanted`` if it can be, else the largest up to the default.

        Raises ConfigError, saying both numbers, when ``wanted`` crosses a limit of the model.
        """
        limits = [limit for limit in (self.max_positions, self.rope_bound) if limit is not None]
        if wanted is None:
            return min([DEFAULT_CONTEXT, *limits])
        if wanted < 2:
            raise ConfigError(f"max_context is {wanted}; at least 2")
        if self.max_positions is not None and wanted > self.max_positions:
            raise ConfigError(
                f"max_context is {wanted}; {self.name} has {self.max_positions} positions"
            )
        if self.rope_bound is not None and wanted > self.rope_bound:
            raise ConfigError(
                f"max_context is {wanted}; beyond {self.rope_bound} positions the rope type of "
                f"{self.name} rewrites old keys, and a log is never rewritten"
            )
        return wanted


@message("stage.spec")
class StageSpec:
    """One stage: the layers [first, stop) of the checkpoint in ``directory``, and its row grid.

    A microbatch is ``batch_size`` rows; slot = microbatch * batch_size + row. ``exact`` asks for
    logits that do not depend on companions, rows, order or splits; it wants ``n_threads`` 1.
    With ``device_slots`` the device holds the logs of that many microbatches and host memory those
    of all, copied at no more than ``swap_bandwidth`` bytes a second if that is not 0.
    """

    directory: str
    first: int
    stop: int
    n_layers: int
    dtype: str
    n_microbatches: int
    batch_size: int
    max_context: int
    chunk_tokens: int = EXTENT_TOKENS
    exact: bool = True
    n_threads: int = 1
    device: str = "cpu"
    device_slots: int = 0
    swap_bandwidth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.stop <= self.n_layers:
            raise ConfigError(f"layers [{self.first}, {self.stop}) of {self.n_layers}")
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(f"dtype is {self.dtype!r}; one of {', '.join(DTYPE_BYTES)}")
        for name in ("n_microbatches", "batch_size", "chunk_tokens", "n_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1")
        if self.max_context < 2:
            raise ConfigError(f"max_context is {self.max_context}; at least 2")
        if self.device_slots < 0 or not 0 <= self.swap_bandwidth < math.inf:
            raise ConfigError(
                f"device_slots is {self.device_slots}, swap_bandwidth {self.swap_bandwidth}; "
                "neither may be negative or infinite"
            )
        if self.exact and self.n_threads != 1:
            raise ConfigError(
                f"threads is {self.n_threads}; exact mode computes with one: "
                "set exact=False (--no-exact) for more"
            )

    @property
    def layers(self) -> tuple[int, int]:
        return self.first, self.stop

    @property
    def is_first(self) -> bool:
        return self.first == 0

    @property
    def is_last(self) -> bool:
        return self.stop == self.n_layers

    @property
    def n_slots(self) -> int:
        return self.n_microbatches * self.batch_size

    def on_device(self) -> StageSpec:
        """The same stage with the microbatches only that its device holds at a time."""
        n_held = self.device_slots if self.swaps else self.n_microbatches
        return replace(self, n_microbatches=n_held, device_slots=0)

    @property
    def swaps(self) -> bool:
        """Whether the device holds fewer microbatches than there are."""
        return 0 < self.device_slots < self.n_microbatches
