"""The public repository's ``model_info.json``: whole-model times on one machine per batch size.

``{model: {"batch_sizes": [ascending], "measurements_per_bs": {"4": [prompt_ms, token_ms], ...}}}``
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Times of one model on one machine, one entry a batch size, batch sizes ascending.

    Raises ConfigError for lists that contradict each other, and for times that cannot be.
    """

    model: str
    batch_sizes: tuple[int, ...]
    prompt_ms: tuple[float, ...]
    token_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.batch_sizes)
        if not count or len(self.prompt_ms) != count or len(self.token_ms) != count:
            raise ConfigError(f"{self.model}: one prompt and one token time for each batch size")
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)) or self.batch_sizes[0] < 1:
            raise ConfigError(f"{self.model}: batch_sizes {self.batch_sizes} must ascend from 1 up")
        for name, times in (("prompt", self.prompt_ms), ("token", self.token_ms)):
            bad = [time for time in times if not (math.isfinite(time) and time > 0)]
            if bad:
                raise ConfigError(f"{self.model}: {name} time {bad[0]!r} ms must be above 0")

    def to_json(self) -> dict[str, Any]:
        """The entry of this model in the file."""
        times = zip(self.batch_sizes, self.prompt_ms, self.token_ms, strict=True)
        return {
            "batch_sizes": list(self.batch_sizes),
            "measurements_per_bs": {str(batch): [prompt, token] for batch, prompt, token in times},
        }


def read_model_info(path: Path, model: str) -> ModelInfo:
    """The entry ``model`` of a model_info.json; ConfigError says what is missing or wrong."""
    document = read_json(path)
    if not isinstance(document, Mapping) or model not in document:
        known = ", ".join(sorted(document)) if isinstance(document, Mapping) else "no object"
        raise ConfigError(f"{path} has no model {model!r}; it has: {known}")
    return model_info_from_json(model, document[model])


def write_model_info(path: Path, infos: tuple[ModelInfo, ...]) -> None:
    """Write a file that the public simulators read."""
    document = {info.model: info.to_json() for info in infos}
    path.write_text(json.dumps(document, indent=2) + "\n")


def merge_model_info(path: Path, info: ModelInfo) -> None:
    """Put one model into a file that may have others; their entries must be in order, too."""
    kept = [each for each in read_model_infos(path) if each.model != info.model]
    write_model_info(path, (*kept, info))


def read_model_infos(path: Path) -> list[ModelInfo]:
    """Every entry of a file, none where there is no file; ConfigError for one that is not right."""
    document = read_json(path) if path.exists() else {}
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path} is there and holds no models; name another file")
    return [model_info_from_json(name, entry) for name, entry in document.items()]


def model_info_from_json(model: str, entry: Any) -> ModelInfo:
    """Check and convert one entry; ConfigError names the field."""
    try:
        batches = entry["batch_sizes"]
        measured = entry["measurements_per_bs"]
        pairs = [(int(batch), float(p), float(t)) for batch, (p, t) in measured.items()]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{model}: not an entry of a model_info.json ({error!r})") from error
    if [pair[0] for pair in pairs] != batches:
        raise ConfigError(
            f"{model}: batch_sizes {batches} and measurements_per_bs {list(measured)} contradict"
        )
    return ModelInfo(
        model=model,
        batch_sizes=tuple(batches),
        prompt_ms=tuple(pair[1] for pair in pairs),
        token_ms=tuple(pair[2] for pair in pairs),
    )


def read_json(path: Path) -> Any:
    """A JSON file's value; ConfigError when it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
