"""The settings of one config.json, with the defaults of its configuration class filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvrt.errors import ModelError
from dvrt.models.architecture import Architecture

_REWRITING_ROPES = ("dynamic", "longrope", "su")


class Settings:
    """Looks settings up by their standard names; every refusal names the file and the setting."""

    def __init__(
        self, directory: Path, config: Mapping[str, Any], architecture: Architecture
    ) -> None:
        self.directory = directory
        self.config = config
        self.architecture = architecture

    def get(self, name: str, default: Any = None) -> Any:
        """The value under the class's own name or the standard one, or the class's default."""
        own = self.architecture.aliases.get(name, name)
        for key in (own, name):
            if key in self.config:
                return self.config[key]
        return self.architecture.defaults.get(own, default)

    def integer(self, name: str) -> int:
        value = self.get(name)
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{self.directory}/config.json: {name} is {value!r}, expected a number"
            )
        return value

    def n_kv_heads(self) -> int:
        if self.get("kv_lora_rank"):
            return 1
        value = self.get("num_key_value_heads")
        return value if type(value) is int and value > 0 else self.integer("num_attention_heads")

    def head_dims(self) -> tuple[int, int]:
        """The widths of one head's key and value; latent attention keeps two latents instead."""
        latent, rope_dim = self.get("kv_lora_rank"), self.get("qk_rope_head_dim")
        if latent and rope_dim:
            return self.integer("kv_lora_rank"), self.integer("qk_rope_head_dim")
        if self.get("head_dim"):
            return self.integer("head_dim"), self.integer("head_dim")
        width = self.integer("hidden_size") // self.integer("num_attention_heads")
        return width, width

    def has_experts(self) -> bool:
        names = [*self.config, *self.architecture.defaults]
        return any("expert" in name for name in names)

    def max_positions(self) -> int | None:
        """How many positions the model has; None for one without a limit."""
        value = self.get("max_position_embeddings")
        return value if type(value) is int and value > 0 else None

    def rope_bound(self) -> int | None:
        """The context beyond which the rope type rewrites the keys of old positions."""
        bounds = [self._rope_bound(rope) for rope in self._ropes()]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _ropes(self) -> list[Mapping[str, Any]]:
        """The rope settings, old name or new, one for all layers or one a kind of layer."""
        ropes = []
        for key in ("rope_parameters", "rope_scaling"):
            value = self.get(key)
            if isinstance(value, Mapping):
                ropes += [value, *(item for item in value.values() if isinstance(item, Mapping))]
        return ropes

    def _rope_bound(self, rope: Mapping[str, Any]) -> int | None:
        if rope.get("rope_type", rope.get("type")) not in _REWRITING_ROPES:
            return None
        own = rope.get("original_max_position_embeddings")
        bound = own or self.get("original_max_position_embeddings") or self.max_positions()
        return bound if type(bound) is int else None

    def refuse_unordinary_layers(self) -> None:
        """Raise ModelError unless every layer is dense and attends to all positions before it."""
        kinds = self.get("layer_types")
        if isinstance(kinds, list):
            other = sorted({str(kind) for kind in kinds} - {"full_attention"})
            if other:
                self._refuse(f"layers with {' and '.join(other)}")
        window = self.get("sliding_window")
        if window and self.get("use_sliding_window", True) and not isinstance(kinds, list):
            self._refuse(f"sliding-window attention (sliding_window is {window})")
        if self.get("attention_chunk_size"):
            self._refuse("chunked attention")
        if self.get("keep_window_size"):
            self._refuse("attention with a dynamic mask")
        if self.has_experts():
            raise ModelError(
                f"{self.directory}: {self.architecture.model_type!r} is a mixture of experts, "
                "which is not served: which rows share a product depends on all rows of a batch"
            )
        made_up = self.architecture.layer_kinds - {"full_attention", "sliding_attention"}
        if made_up and not isinstance(kinds, list):
            self._refuse(f"layers with {' and '.join(sorted(made_up))}")

    def _refuse(self, what: str) -> None:
        raise ModelError(
            f"{self.directory}: {self.architecture.model_type!r} has {what}; dvrt serves layers "
            "with ordinary full attention, whose KV log is only ever appended to"
        )
