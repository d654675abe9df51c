"""The sampling defaults that a checkpoint brings along in generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvrt.errors import ModelError, RequestRejected
from dvrt.models.checkpoint import read_json
from dvrt.models.spec import GenerationDefaults
from dvrt.requests import SamplingParams


def read_generation_defaults(directory: Path, config: Mapping[str, Any]) -> GenerationDefaults:
    """The defaults in generation_config.json; end-of-text ids from config.json where it has none.

    ``do_sample: false`` is greedy, a temperature of 0. Raises ModelError for values of no sense, or
    that no request may have: every request that leaves them out would be refused.
    """
    file = directory / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    ids = values.get("eos_token_id", config.get("eos_token_id"))
    greedy = values.get("do_sample") is False
    return GenerationDefaults(
        eos_ids=_ids(directory, ids),
        temperature=0.0 if greedy else _number(file, values, "temperature"),
        top_k=_integer(file, values, "top_k"),
        top_p=_number(file, values, "top_p"),
        repetition_penalty=_number(file, values, "repetition_penalty"),
    )


def _ids(directory: Path, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(type(one) is int for one in ids):
        raise ModelError(
            f"{directory}: eos_token_id is {value!r}; expected a number or a list of them"
        )
    return tuple(ids)


def _number(file: Path, values: Mapping[str, Any], name: str) -> float | None:
    _ensure_usable(file, values, name)
    value = values.get(name)
    return None if value is None else float(value)


def _integer(file: Path, values: Mapping[str, Any], name: str) -> int | None:
    _ensure_usable(file, values, name)
    return values.get(name)


def _ensure_usable(file: Path, values: Mapping[str, Any], name: str) -> None:
    if values.get(name) is None:
        return
    try:
        SamplingParams(**{name: values[name]})
    except RequestRejected as error:
        raise ModelError(f"{file}: {error}") from error
