"""What the installed transformers knows of a model type, read from its source without importing it.

Importing transformers' configuration classes imports torch (seconds); a checkpoint is judged before
any of that is paid. The configuration classes are dataclasses with literal defaults, so their
syntax trees hold all that is needed here. The modelling code itself is not looked at.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dvrt.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model type: its causal-LM class, its configuration's defaults and its pipeline plan.

    ``aliases`` maps standard attribute names to the configuration's own. ``plan`` names the base
    model's children in order of execution, None where transformers gives no plan.
    ``layer_kinds`` are the kinds of layers that the configuration class makes up by itself when
    config.json does not list them.
    """

    model_type: str
    causal_class: str
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str]
    plan: tuple[str, ...] | None
    layer_kinds: frozenset[str] = field(default=frozenset())


def find_architecture(model_type: str) -> Architecture | None:
    """What serves ``model_type`` as a causal language model; None: nothing does."""
    causal = causal_classes().get(model_type)
    config_class = _config_classes().get(model_type)
    if causal is None or config_class is None:
        return None
    node = _find_class(_configuration_source(model_type), config_class)
    if node is None:
        return None
    values = dict(_assignments(node))
    plan = values.get("base_model_pp_plan")
    return Architecture(
        model_type=model_type,
        causal_class=causal,
        defaults=values,
        aliases=values.get("attribute_map") or {},
        plan=tuple(plan) if plan else None,
        layer_kinds=frozenset(_layer_kinds(node)),
    )


@cache
def causal_classes() -> Mapping[str, str]:
    """The causal-LM class of each model type, by name."""
    names = _mapping("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    return {key: name for key, name in names.items() if isinstance(name, str)}


@cache
def _config_classes() -> Mapping[str, str]:
    return _mapping("models/auto/auto_mappings.py", "CONFIG_MAPPING_NAMES")


@cache
def _root() -> Path:
    """Where transformers is installed."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModelError("transformers is not installed; it does the modelling")
    return Path(str(spec.origin)).parent


def _configuration_source(model_type: str) -> Path:
    special = _mapping("models/auto/auto_mappings.py", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    module = str(special.get(model_type, model_type.replace("-", "_")))
    return _root() / "models" / module / f"configuration_{module}.py"


@cache
def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])


@cache
def _mapping(source: str, name: str) -> Mapping[str, Any]:
    """A module-level ``NAME = OrderedDict([(key, value), ...])`` as a dict of its literal items."""
    for node in _parse(_root() / source).body:
        if isinstance(node, ast.Assign) and _target(node) == name:
            return dict(_pairs(node.value))
    return {}


def _pairs(node: ast.expr) -> Iterator[tuple[str, Any]]:
    items = node.args[0] if isinstance(node, ast.Call) and node.args else node
    for item in items.elts if isinstance(items, ast.List) else ():
        try:
            key, value = ast.literal_eval(item)
        except ValueError:
            continue
        yield key, value


def _target(node: ast.Assign) -> str | None:
    first = node.targets[0]
    return first.id if isinstance(first, ast.Name) else None


def _find_class(source: Path, name: str) -> ast.ClassDef | None:
    for node in _parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    return None


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """The class attributes with literal values, annotated or not."""
    for item in node.body:
        if isinstance(item, ast.Assign):
            name, value = _target(item), item.value
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value:
            name, value = item.target.id, item.value
        else:
            continue
        if name is None:
            continue
        try:
            yield name, ast.literal_eval(value)
        except ValueError:
            continue


def _layer_kinds(node: ast.ClassDef) -> Iterator[str]:
    for item in ast.walk(node):
        if not isinstance(item, ast.FunctionDef):
            continue
        for leaf in ast.walk(item):
            text = leaf.value if isinstance(leaf, ast.Constant) else None
            if isinstance(text, str) and (text.endswith("_attention") or text.startswith("hybrid")):
                yield text
