"""Where each family is cut: which children of the base model belong to the first and last stage.

Every type with a ``base_model_pp_plan`` is served by that plan; GPT-2, OPT and BLOOM have none and
stand here. Pure names: the modules behind them are torch's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dvrt.models.architecture import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Names of the base model's children: what runs before, in and behind the layers.

    ``inner`` is the path from the causal-LM class's base model to the module that has the layers.
    ``additive`` children of the first stage add something to the hidden states (positions);
    elsewhere they add nothing. ``alibi`` families take biases over the full extent.
    """

    layers: str
    first: tuple[str, ...]
    last: tuple[str, ...]
    inner: str = ""
    additive: tuple[str, ...] = ()
    alibi: bool = False


ADAPTED: Mapping[str, Cut] = {
    "gpt2": Cut(layers="h", first=("wte", "wpe", "drop"), last=("ln_f",), additive=("wpe",)),
    "opt": Cut(
        inner="decoder",
        layers="layers",
        first=("embed_tokens", "embed_positions", "project_in"),
        last=("final_layer_norm", "project_out"),
        additive=("embed_positions",),
    ),
    "bloom": Cut(
        layers="h",
        first=("word_embeddings", "word_embeddings_layernorm"),
        last=("ln_f",),
        alibi=True,
    ),
}


def find_cut(architecture: Architecture) -> Cut | None:
    """How to cut this architecture; None: nobody says where it may be cut."""
    adapted = ADAPTED.get(architecture.model_type)
    if adapted is not None:
        return adapted
    plan = architecture.plan
    if plan is None or "layers" not in plan:
        return None
    at = plan.index("layers")
    return Cut(layers="layers", first=plan[:at], last=plan[at + 1 :])
