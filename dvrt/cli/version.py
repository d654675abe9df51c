"""``dvrt version``: what runs here, for reports of problems."""

from __future__ import annotations

import json as json_format
import platform
from importlib import metadata
from typing import Annotated

import typer

PACKAGES = (
    "dvrt",
    "torch",
    "transformers",
    "numpy",
    "uvloop",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "ucxx-cu12",
)


def version(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show versions of dvrt, Python and what it builds on."""
    found = versions()
    if json:
        print(json_format.dumps(found))
        return
    for name, number in found.items():
        print(f"{name:14}{number or 'not installed'}")


def versions() -> dict[str, str | None]:
    """Version by name, None for what is not installed; nothing is imported."""
    return {name: _version(name) for name in PACKAGES} | {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _own_version() if name == "dvrt" else None


def _own_version() -> str:
    """A checkout that was never installed has no metadata."""
    import dvrt

    return dvrt.__version__
