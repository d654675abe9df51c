"""Files, functions and examples stay small enough to be read in one go."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_EXAMPLE_LINES = 90

MODULES = sorted(
    path for folder in ("dvrt", "transport", "cuda") for path in (ROOT / folder).rglob("*.py")
)
EXAMPLES = sorted(
    path for path in (ROOT / "examples").glob("*.py") if "import dvrt" in path.read_text()
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_file_is_short_and_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert sum(1 for line in text.splitlines() if line.strip()) <= MAX_FILE_LINES
    assert not text.strip() or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_functions_are_short(path: Path) -> None:
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", EXAMPLES, ids=relative)
def test_an_example_is_short_and_run_by_a_test(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MAX_EXAMPLE_LINES
    tests = [each for each in (ROOT / "tests").rglob("*.py") if each != Path(__file__)]
    assert [
        each for each in tests if path.name in each.read_text() or path.stem in each.read_text()
    ]
