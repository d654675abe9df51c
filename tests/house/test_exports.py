"""What dvrt/__init__.py offers is there, under one name, and typed as it is at run time."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import dvrt
import dvrt.errors

ROOT = Path(__file__).parents[2]


def exports() -> dict[str, str]:
    """Public name to module, as dvrt/__init__.py imports them, late ones included."""
    tree = ast.parse((ROOT / "dvrt/__init__.py").read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dvrt."):
            for alias in node.names:
                assert alias.asname == alias.name, f"write {alias.name} as {alias.name}"
                found[alias.name] = str(node.module)
    return found


@pytest.mark.parametrize("name", exports())
def test_export(name: str) -> None:
    assert getattr(dvrt, name) is getattr(importlib.import_module(exports()[name]), name)


def test_late_exports_are_those_that_type_checkers_see() -> None:
    late = dvrt._LATE
    assert {name: module for name, module in exports().items() if name in late} == late
    with pytest.raises(AttributeError, match="no attribute 'lunch'"):
        _ = dvrt.lunch


def test_every_error_stands_in_the_drawn_tree() -> None:
    tree = dvrt.errors.__doc__ or ""
    defined = {
        name
        for name, value in vars(dvrt.errors).items()
        if isinstance(value, type) and issubclass(value, dvrt.errors.DvrtError)
    }
    assert defined <= set(re.findall(r"\w+", tree))
    drawn = {
        name
        for line in re.findall(r"(?m)^[│ ]*[├└]── ([A-Z]\w+(?:, [A-Z]\w+)*)", tree)
        for name in line.split(", ")
    }
    assert drawn <= defined
