"""Options: fields of a dataclass that say how they are asked for and judged.

Keywords, command line and TOML files all follow from one declaration. Knows no option by name.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1 << 10 * power for power, unit in enumerate("kmgt", start=1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def parse_size(key: str, text: str | int) -> int:
    """Bytes of ``2GiB``, ``512MB``, ``1.5g`` or a plain number. Raises ConfigError otherwise."""
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(f"{key} is {text!r}; expected a size such as 512MiB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_size(size_bytes: float) -> str:
    """``size_bytes`` for people: 1536 is ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How one option is asked for and judged; stands in its field's metadata as ``option``.

    ``low`` and ``high`` are inclusive. ``check`` returns what is wrong with a value, or None.
    ``is_size`` accepts ``2GiB``; ``is_secret`` values are never shown; ``env`` names the variable
    that is read when the option is given nowhere else; ``otherwise`` says in words what its absence
    means where the default is None.
    """

    name: str = ""
    kind: type = str
    is_optional: bool = False
    is_required: bool = False
    default: Any = None
    help: str
    unit: str | None = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    check: Callable[[Any], str | None] | None = None
    is_size: bool = False
    is_secret: bool = False
    env: str | None = None
    otherwise: str | None = None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def take(self, value: Any) -> Any:
        """The value as this option's type. Raises ConfigError naming the key and the value."""
        if value is None and self.is_optional:
            return None
        taken = self._convert(value)
        self._judge(taken)
        return taken

    def _convert(self, value: Any) -> Any:
        if self.is_size and isinstance(value, (str, int)) and not isinstance(value, bool):
            return parse_size(self.name, value)
        if self.kind is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        if self.kind is float and type(value) is int:
            return float(value)
        if self.kind is tuple:
            return self._integers(value)
        if type(value) is not self.kind:
            self._refuse(value, f"expected {_WORDS[self.kind]}")
        return value

    def _integers(self, value: Any) -> tuple[int, ...]:
        if isinstance(value, str):
            try:
                return tuple(int(part) for part in value.split(","))
            except ValueError:
                self._refuse(value, "expected numbers such as 4,4,2")
        if not isinstance(value, (list, tuple)) or any(type(part) is not int for part in value):
            self._refuse(value, "expected numbers such as 4,4,2")
        return tuple(value)

    def _judge(self, value: Any) -> None:
        if self.choices and value not in self.choices:
            near = nearest(value, self.choices)
            self._refuse(value, f"choose from {', '.join(self.choices)}{near}")
        if self.kind is float and not math.isfinite(value):
            self._refuse(value, "expected a finite number")
        if self.low is not None and value < self.low:
            self._refuse(value, f"at least {self.low:g}")
        if self.high is not None and value > self.high:
            self._refuse(value, f"at most {self.high:g}")
        fault = self.check(value) if self.check else None
        if fault:
            self._refuse(value, fault)

    def _refuse(self, value: Any, expected: str) -> typing.NoReturn:
        shown = "not usable" if self.is_secret else repr(value)
        raise ConfigError(f"{self.name} is {shown}; {expected}")


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of whole numbers",
}


def option(default: Any = MISSING, **about: Any) -> Any:
    """A dataclass field that is an Option; ``about`` are Option's fields."""
    shown = not about.get("is_secret", False)
    return field(default=default, repr=shown, metadata={"option": Option(**about)})


@cache
def options_of(cls: type) -> Mapping[str, Option]:
    """The options of a dataclass by name, completed with what its annotations say."""
    hints = typing.get_type_hints(cls)
    return types.MappingProxyType({f.name: _completed(f, hints[f.name]) for f in fields(cls)})


def _completed(declared: Field[Any], hint: Any) -> Option:
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    inner = parts[0] if is_union else hint
    about = {f.name: getattr(declared.metadata["option"], f.name) for f in fields(Option)}
    about.update(
        name=declared.name,
        kind=typing.get_origin(inner) or inner,
        is_optional=is_union,
        is_required=declared.default is MISSING,
        default=None if declared.default is MISSING else declared.default,
    )
    return Option(**about)


def nearest(name: object, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing when no known name comes near."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


class _Checked(typing.Protocol):
    def check(self) -> None: ...


C = typing.TypeVar("C", bound=_Checked)


def make_options(cls: type[C], values: Mapping[str, Any]) -> C:
    """An options dataclass from ``values``, converted and checked. Raises ConfigError.

    What ``values`` leaves out comes from the option's environment variable, then its default.
    """
    known = options_of(cls)
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown option {key!r}{nearest(key, known)}")
    taken = {name: known[name].take(value) for name, value in values.items()}
    for name, each in known.items():
        if name not in taken and each.env and each.env in os.environ:
            taken[name] = each.take(os.environ[each.env])
        if name not in taken and each.is_required:
            raise ConfigError(f"{name} is missing; {each.help}")
    made = cls(**taken)
    made.check()
    return made


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a TOML file, with ``_`` for ``-``. Raises ConfigError naming file and line."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error
    return {key.replace("-", "_"): value for key, value in values.items()}
