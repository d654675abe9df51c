"""Command-line options made from options dataclasses, so that each is declared once."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from dvrt.options import Option, options_of

Command = Callable[..., None]


def with_options(*skip: str, **groups: type) -> Callable[[Command], Command]:
    """Replace each keyword argument named in ``groups`` by the options of its dataclass.

    The command gets a dict of the values that were given for each group; ``skip`` names options
    that the command declares itself.
    """

    def replace(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.name not in groups]
        made = {name: _parameters(cls, skip) for name, cls in groups.items()}

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            given: dict[str, Any] = {p.name: values.pop(p.name) for p in own}
            for name, parameters in made.items():
                picked = {p.name: values[p.name] for p in parameters}
                given[name] = {key: value for key, value in picked.items() if value is not None}
            command(**given)

        hints = typing.get_type_hints(command, include_extras=True)
        every = [p.replace(annotation=hints[p.name]) for p in own]
        every += [parameter for parameters in made.values() for parameter in parameters]
        wrapper.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in every}
        del wrapper.__wrapped__
        return wrapper

    return replace


def _parameters(cls: type, skip: tuple[str, ...]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_typed(each), typer.Option(*_flags(each), **_about(each))],
        )
        for each in options_of(cls).values()
        if each.name not in skip
    ]


def _typed(each: Option) -> Any:
    is_number = each.kind in (int, float) and not each.is_size
    return (each.kind if is_number or each.kind is bool else str) | None


def _flags(each: Option) -> tuple[str, ...]:
    if each.kind is not bool:
        return (each.flag,)
    return (f"{each.flag}/{each.flag.replace('--', '--no-', 1)}",)


def _about(each: Option) -> dict[str, Any]:
    about: dict[str, Any] = {"help": _help(each), "show_default": False}
    if each.choices:
        about["metavar"] = "|".join(each.choices)
    return about


def _help(each: Option) -> str:
    notes = [each.unit] if each.unit else []
    if each.default is not None or each.otherwise:
        notes.append(f"default: {each.otherwise or _shown(each.default)}")
    if each.env:
        notes.append(f"or {each.env}")
    return f"{each.help} [{'; '.join(notes)}]" if notes else each.help


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)
