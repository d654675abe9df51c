"""The package ucxx, which is imported when ``ucx://`` is first used, and never before."""

from __future__ import annotations

import functools
import os
from importlib import import_module
from typing import Any, NamedTuple

from dvrt.errors import ConfigError

BRING = "pip install 'dvrt[ucx]'"


class Ucx(NamedTuple):
    """What is used of the package ucxx."""

    api: Any
    array: Any


@functools.cache
def load() -> Ucx:
    """Import ucxx; blocks for up to a second. Raises ConfigError when it is not installed.

    The variables that ucxx sets in the environment are for this process, not for its children.
    """
    before = {**os.environ}
    os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")
    os.environ.setdefault("UCX_MEMTYPE_CACHE", "n")
    try:
        return Ucx(import_module("ucxx._lib.libucxx"), import_module("ucxx._lib.arr").Array)
    except ImportError as error:
        raise ConfigError(f"ucx:// needs the package ucxx ({error}): {BRING}") from error
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
