"""The folders at the top and the links to them (no __init__.py in a folder called cuda, ever)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVIDIA = {"bindings", "cccl", "compute", "coop", "core", "cuda", "cudart", "nvrtc", "pathfinder"}
NVIDIA |= {"stf", "tile"}
SKIPPED = {".git", ".venv", "node_modules", "build", "dist"}


def folders_called(name: str) -> list[Path]:
    found = []
    for folder, inner, _ in os.walk(ROOT):
        inner[:] = [each for each in inner if each not in SKIPPED]
        found += [Path(folder, each) for each in inner if each == name]
    return found


def python(code: str, cwd: Path, **env: str) -> str:
    """What a fresh interpreter in ``cwd``, with ``cwd`` on its path, prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["cuda", "transport"])
def test_links(name: str) -> None:
    link = ROOT / "dvrt" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert not (ROOT / name).is_symlink()
    assert (ROOT / name).is_dir()


def test_links_are_links_in_git() -> None:
    command = ["git", "ls-files", "--stage", "dvrt/cuda", "dvrt/transport"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["120000", "120000"]


def test_no_folder_called_cuda_is_a_package() -> None:
    assert folders_called("cuda")
    assert [each for each in folders_called("cuda") if (each / "__init__.py").exists()] == []


@pytest.mark.parametrize("folder", ["cuda", "transport"])
def test_module_names_hide_nothing(folder: str) -> None:
    names = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    assert names & (NVIDIA | set(sys.stdlib_module_names)) == set()


def test_nvidias_namespace_stays_visible_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda/pathfinder.py").write_text("NAME = 'theirs'")
    code = "import dvrt.cuda, cuda.pathfinder; print(cuda.pathfinder.NAME)"
    assert python(code, ROOT, PYTHONPATH=str(tmp_path)) == "theirs"


def test_a_download_without_links_works(tmp_path: Path) -> None:
    lost = shutil.ignore_patterns("__pycache__", "cuda", "transport")
    shutil.copytree(ROOT / "dvrt", tmp_path / "dvrt", ignore=lost)
    for name in ("cuda", "transport"):
        shutil.copytree(ROOT / name, tmp_path / name)
    code = "import dvrt.transport.base as t, dvrt.cuda as c; print(t.__file__, *c.__path__)"
    expected = f"{tmp_path}/transport/base.py {tmp_path}/cuda"
    assert python(code, tmp_path, PYTHONPATH=str(tmp_path)) == expected


@pytest.mark.slow
def test_the_wheel_holds_the_linked_folders(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    files = ("dvrt", "transport", "cuda", "pyproject.toml", "README.md", "LICENSE")
    for name in files:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, clone / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-qq"]
    subprocess.run([*command, "-w", str(tmp_path), str(clone)], check=True, timeout=120)
    import zipfile

    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    sources = {
        str(path.relative_to(ROOT))
        for folder in ("dvrt", "transport", "cuda")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cu") or path.name == "py.typed"
    }
    linked = {name if name.startswith("dvrt/") else f"dvrt/{name}" for name in sources}
    assert linked <= held
    assert not any(name.startswith(("cuda/", "transport/", "tests/")) for name in held)
