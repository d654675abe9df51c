"""Who may import whom: a package imports from lower levels and from itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LEVELS = {
    "observe": 0,
    "transport": 1,
    "cuda": 1,
    "kv": 1,
    "streaming": 2,
    "models": 2,
    "control": 2,
    "planner": 2,
    "actors": 2,
    "protocol": 3,
    "simulator": 3,
    "processes": 4,
    "stages": 5,
    "cluster": 6,
    "serve": 7,
    "bench": 8,
    "chaos": 8,
    "cli": 9,
}
LEVELS |= {path.stem: 0 for path in (ROOT / "dvrt").glob("[a-z]*.py")}  # dvrt's own files
LEVELS["_streaming_copy"] = 0  # in C
PURE = ("control", "planner", "kv", "simulator")
IMPURE = ("asyncio", "torch", "uvloop")
UNSAFE = ("pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve")
OPTIONAL = {"cupy": "cuda", "ucxx": "transport"}

MODULES = sorted(
    path for folder in ("dvrt", "transport", "cuda") for path in (ROOT / folder).rglob("*.py")
)


def name_of(path: Path) -> str:
    """The dotted name of a module; files in transport/ and cuda/ are dvrt's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "dvrt" else ("dvrt", *parts)
    return ".".join(part for part in parts if part != "__init__")


def package_of(name: str) -> str:
    """``kv`` for dvrt.kv.log; empty for dvrt itself and its __main__."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every import, wherever it stands, and of every module named in a string."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module="dvrt", names=names):
                yield from ((node.lineno, f"dvrt.{alias.name}") for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Constant(value=str(text)) if re.fullmatch(r"dvrt(\.[a-z_]+)+", text):
                yield node.lineno, text


def violations(source: str, name: str) -> list[str]:
    """What the module ``name`` with this source imports against the rules."""
    own = package_of(name)
    found = []
    for line, imported in imports(ast.parse(source)):
        fault = fault_of(own, imported)
        if fault:
            found.append(f"{name}:{line} {fault}")
    return found


def fault_of(own: str, imported: str) -> str | None:
    top = imported.split(".")[0]
    if top in UNSAFE:
        return f"imports {top}; nothing here is ever pickled"
    if own in PURE and top in IMPURE:
        return f"imports {top}; {own} decides and does not act"
    if top in OPTIONAL and own != OPTIONAL[top]:
        return f"imports {top}; only {OPTIONAL[top]} may"
    if top in ("transport", "cuda"):
        return bare_fault(imported)
    if top != "dvrt" or not own:
        return None
    other = package_of(imported)
    if other not in LEVELS:
        return None if not other else f"imports dvrt.{other}, which has no level"
    allowed = other == own or LEVELS[other] < LEVELS[own] or LEVELS[own] == LEVELS[other] == 0
    return None if allowed else f"imports dvrt.{other} of level {LEVELS[other]}"


def bare_fault(imported: str) -> str | None:
    """Our modules have one name; NVIDIA's own ``cuda.x`` stays importable."""
    parts = imported.split(".")
    ours = parts[0] == "transport" or (
        len(parts) > 1 and (ROOT / "cuda" / f"{parts[1]}.py").exists()
    )
    return f"imports {imported}; write dvrt.{imported}" if ours else None


def test_every_package_has_a_level() -> None:
    packages = {package_of(name_of(path)) for path in MODULES} - {""}
    assert packages <= set(LEVELS), "give it a level in this file and in ARCHITECTURE.md"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports(path: Path) -> None:
    assert violations(path.read_text(), name_of(path)) == []


@pytest.mark.parametrize("folder", ["tests", "examples"])
def test_no_bare_imports(folder: str) -> None:
    found = [
        f"{path}:{line} {bare_fault(name)}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in imports(ast.parse(path.read_text()))
        if name.split(".")[0] in ("transport", "cuda") and bare_fault(name)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("dvrt.kv.log", "import asyncio", "decides and does not act"),
        ("dvrt.control.x", "def f():\n    import torch.nn", "decides and does not act"),
        ("dvrt.kv.log", "from dvrt.transport import base", "dvrt.transport of level 1"),
        ("dvrt.transport.tcp", "from dvrt import kv", "dvrt.kv of level 1"),
        ("dvrt.models.x", "NAME = 'dvrt.cluster.engine'", "dvrt.cluster of level 6"),
        ("dvrt.serve.x", "from dvrt.cli import main", "dvrt.cli of level 9"),
        ("dvrt.errors", "from dvrt.kv import log", "dvrt.kv of level 1"),
        ("dvrt.actors.x", "from transport.base import Channel", "write dvrt.transport"),
        ("dvrt.actors.x", "import pickle", "ever pickled"),
        ("dvrt.actors.x", "import cupy", "only cuda may"),
        ("dvrt.actors.x", "from dvrt.novel import x", "has no level"),
    ],
)
def test_a_violation_is_seen(name: str, source: str, fault: str) -> None:
    assert [line for line in violations(source, name) if fault in line]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "dvrt.actors.x",
            "import torch, asyncio\nfrom dvrt.kv import log\nfrom dvrt.actors import y",
        ),
        ("dvrt.cuda.device", "from cuda import pathfinder\nimport cupy"),
        ("dvrt.errors", "from dvrt.wire import message"),
        ("dvrt", "from dvrt.cli import main"),
    ],
)
def test_the_allowed_is_allowed(name: str, source: str) -> None:
    assert violations(source, name) == []
