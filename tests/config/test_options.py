"""Options dataclasses: conversion, limits, errors that name the key and the value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.errors import ConfigError
from dvrt.options import format_size, make_options, option, options_of, parse_size, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    where: str = option(help="a place")
    rows: int = option(2, help="rows", low=1, high=9)
    rate: float = option(0.5, help="rate", low=0.0)
    fast: bool = option(False, help="fast")
    split: tuple[int, ...] | None = option(None, help="split")
    room: int | None = option(None, help="room", is_size=True, low=1)
    kind: str = option("plain", help="kind", choices=("plain", "fancy"))
    word: str | None = option(None, help="word", is_secret=True, env="DVRT_TEST_WORD")

    def check(self) -> None:
        if self.fast and self.rows > 5:
            raise ConfigError(f"rows is {self.rows}; fast goes to 5")


def make(**values: object) -> Sample:
    return make_options(Sample, {"where": "here", **values})


def test_defaults_and_conversions() -> None:
    assert make() == Sample(where="here")
    made = make(where=Path("/there"), rate=3, split=[4, 2], room="1.5KiB", fast=True)
    assert made == Sample(where="/there", rate=3.0, split=(4, 2), room=1536, fast=True)
    assert type(made.rate) is float
    assert make(split="4,4,2").split == (4, 4, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"row": 3}, "unknown option 'row'; did you mean 'rows'?"),
        ({"zzz": 3}, "unknown option 'zzz'$"),
        ({"rows": "3"}, "rows is '3'; expected a whole number"),
        ({"rows": 3.0}, "rows is 3.0; expected a whole number"),
        ({"rows": True}, "rows is True; expected a whole number"),
        ({"rows": None}, "rows is None; expected a whole number"),
        ({"rows": 0}, "rows is 0; at least 1"),
        ({"rows": 10}, "rows is 10; at most 9"),
        ({"rate": math.nan}, "rate is nan; expected a finite number"),
        ({"rate": math.inf}, "rate is inf; expected a finite number"),
        ({"rate": -1}, "rate is -1.0; at least 0"),
        ({"fast": 1}, "fast is 1; expected true or false"),
        ({"split": "4,x"}, "split is '4,x'; expected numbers such as 4,4,2"),
        ({"split": [1.5]}, r"split is \[1.5\]; expected numbers"),
        ({"split": 4}, "split is 4; expected numbers"),
        ({"room": "lots"}, "room is 'lots'; expected a size such as 512MiB"),
        ({"room": "0"}, "room is 0; at least 1"),
        ({"kind": "fanzy"}, "kind is 'fanzy'; choose from plain, fancy; did you mean 'fancy'?"),
        ({"where": b"x"}, "where is b'x'; expected text"),
        ({"fast": True, "rows": 6}, "rows is 6; fast goes to 5"),
    ],
)
def test_refusals(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**values)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ConfigError, match="where is missing; a place"):
        make_options(Sample, {})


def test_the_environment_stands_between_default_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVRT_TEST_WORD", "from outside")
    assert make().word == "from outside"
    assert make(word="given").word == "given"


def test_secrets_are_never_shown() -> None:
    assert "hush" not in repr(make(word="hush"))
    with pytest.raises(ConfigError) as caught:
        make(word=["hush"])
    assert "hush" not in str(caught.value)


def test_options_know_their_types() -> None:
    known = options_of(Sample)
    assert list(known) == ["where", "rows", "rate", "fast", "split", "room", "kind", "word"]
    assert [known[name].kind for name in ("where", "rows", "split", "room")] == [
        str,
        int,
        tuple,
        int,
    ]
    assert [name for name, each in known.items() if each.is_optional] == ["split", "room", "word"]
    assert [name for name, each in known.items() if each.is_required] == ["where"]
    assert known["rows"].flag == "--rows"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), (17, 17), ("2GiB", 2 << 30), ("2 gib", 2 << 30), ("1.5k", 1500), ("3MB", 3_000_000)],
)
def test_sizes(text: str | int, size_bytes: int) -> None:
    assert parse_size("x", text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1.5.2k", "2 GiBs", "1e9", "i", "2i"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="x is"):
        parse_size("x", text)


@given(st.integers(0, 1 << 60))
def test_a_formatted_size_reads_back_nearly(size_bytes: int) -> None:
    assert parse_size("x", format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.1, abs=1)


def test_toml(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('where = "x"\nmax-rows = 3\n')
    assert read_toml(file) == {"where": "x", "max_rows": 3}
    file.write_text("rows = = 3")
    with pytest.raises(ConfigError, match=r"a\.toml: .*line 1"):
        read_toml(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"a\.toml"):
        read_toml(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_toml(tmp_path / "b.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_toml(tmp_path)
