"""What an installed package is without: the repository's model, and packages for its developers."""

from __future__ import annotations

import builtins
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dvrt.bench import common, startup
from dvrt.cli import demo
from dvrt.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_a_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "dvrt", "transport", "cuda"):
        (copy / name).symlink_to(ROOT / name)
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=50)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "dvrt/py.typed" in archive.namelist()


def test_the_demo_says_where_its_model_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "STORYTELLER", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"repository \(examples/storyteller\).*give a MODEL"):
        demo.demo(model=tmp_path / "none")


def test_benchmarks_say_where_their_model_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert common.require_storyteller() == ROOT / "examples" / "storyteller"
    monkeypatch.setattr(common, "STORYTELLER", tmp_path / "none")
    with pytest.raises(ConfigError, match="run this from a clone"):
        startup.measure(quick=True)


def test_bench_load_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        if name == "httpx":
            raise ModuleNotFoundError("No module named 'httpx'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "dvrt.bench.load", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="pip install httpx"):
        real("dvrt.bench.load")
