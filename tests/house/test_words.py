"""What no file of the repository says: a machine's own paths, notes to self, merge leftovers."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "a path of this machine": re.escape(str(ROOT)) + r"\b",
    "somebody's home directory": r"/(?:home|Users)/\w+|/" + r"root/",
    "a note to self": r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    "a merge conflict": r"^(?:<{7}|>{7}) ",
    "an emoji": "[\U0001f000-\U0001faff\u2600-\u27bf]",
    "a placeholder": r"\b(?:lorem " + r"ipsum|NotImplemented" + r"Error)\b",
}
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".cu",
    ".c",
    ".pyi",
    ".cfg",
    ".yaml",
    ".yml",
    ".sh",
    "",
    ".json",
}
READS_ENVIRONMENT = ("dvrt/options.py",)


def tracked() -> list[Path]:
    """The files of the checkout that git tracks or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def texts() -> dict[str, str]:
    small = [path for path in tracked() if path.suffix in TEXT and path.stat().st_size < 1 << 20]
    return {str(path.relative_to(ROOT)): path.read_text(errors="replace") for path in small}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_forbidden(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1} {match[0]!r}"
        for name, text in texts().items()
        if what != "an emoji" or not name.startswith("tests/")  # they are good test input
        for match in pattern.finditer(text)
    ]
    assert found == []


def test_the_environment_is_read_in_one_place() -> None:
    found = []
    for name, text in texts().items():
        in_dvrt = name.startswith(("dvrt/", "transport/", "cuda/")) and name.endswith(".py")
        if in_dvrt and name not in READS_ENVIRONMENT:
            found += [f"{name}:{line}" for line in environment_reads(text)]
    assert found == []


def environment_reads(source: str) -> list[int]:
    """Lines that look one variable up; passing all of it to a child process is no reading."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute() if ast.unparse(node) in ("os.getenv", "os.environ.get"):
                found.append(node.lineno)
            case ast.Subscript(ctx=ast.Load()) if ast.unparse(node.value) == "os.environ":
                found.append(node.lineno)
    return sorted(found)


def test_reading_the_environment_is_seen() -> None:
    source = "import os\nos.getenv('A')\nx = os.environ['A']\nos.environ['A'] = 'b'\n{**os.environ}"
    assert environment_reads(source) == [2, 3]
