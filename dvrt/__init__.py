"""dvrt: pipelines of workers that serve language models and stream their KV caches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if not (
    Path(__file__).parent / "cuda"
).is_dir():  # links lost (a zip download): they stand beside us
    __path__.append(str(Path(__file__).parents[1]))

from dvrt.config import LaunchOptions as LaunchOptions
from dvrt.errors import ConfigError as ConfigError
from dvrt.errors import DvrtError as DvrtError
from dvrt.errors import ModelError as ModelError
from dvrt.errors import Overloaded as Overloaded
from dvrt.errors import RequestRejected as RequestRejected
from dvrt.errors import StageFailed as StageFailed
from dvrt.errors import Unavailable as Unavailable
from dvrt.requests import FinishReason as FinishReason
from dvrt.requests import SamplingParams as SamplingParams
from dvrt.results import Completion as Completion
from dvrt.results import ModelCard as ModelCard
from dvrt.results import Sample as Sample
from dvrt.results import Status as Status
from dvrt.results import Timings as Timings
from dvrt.results import Token as Token
from dvrt.results import WorkerStatus as WorkerStatus

if TYPE_CHECKING:
    from dvrt.cluster.engine import Engine as Engine
    from dvrt.cluster.launch import launch as launch

__version__ = "0.1.0"

_LATE = {"Engine": "dvrt.cluster.engine", "launch": "dvrt.cluster.launch"}


def __getattr__(name: str) -> Any:
    """Load what needs the runtime on first use, so that values and errors stay cheap to import."""
    if name not in _LATE:
        raise AttributeError(f"module 'dvrt' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)
