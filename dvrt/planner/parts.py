"""Parts of a profile as its file has them, and what dvrt itself costs on a machine."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from dvrt.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LARGEST = 1e24

Figures = TypeVar("Figures", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFigures:
    """What the runtime costs beside the model, measured with its own processes; seconds.

    ``token_factor`` and ``prompt_factor`` are what steps take while ``stages`` stages serve, beside
    each other and with pauses, over what they take alone and in a loop; ``alone_factor`` is that of
    token steps with pauses and with nothing beside them. Prompt steps that send what they compute
    to other machines take ``ship_factor`` times as long. ``step_s`` is what a busy stage takes
    for a step beside its compute, ``hop_s`` a step's way from one process to the next and on to its
    compute while all stages are at work. A killed worker is missed ``detect_s`` later, and
    ``restart_s`` after that another has joined; then it loads its weights. ``is_exact`` says that
    whole batches and chunks are computed, whatever is in them.
    """

    step_s: float
    hop_s: float
    detect_s: float
    restart_s: float
    is_exact: bool = False
    token_factor: float = 1.0
    prompt_factor: float = 1.0
    alone_factor: float = 1.0
    ship_factor: float = 1.0
    stages: int = 2

    def __post_init__(self) -> None:
        check_numbers("runtime", self, may_be_zero=("step_s", "hop_s", "detect_s", "restart_s"))

    def token_factor_of(self, stages: int) -> float:
        """For a pipeline of so many stages: what they cost each other grows with their number up
        to that of the measured ones."""
        share = 1.0 if self.stages < 2 else min(1.0, (stages - 1) / (self.stages - 1))
        return self.alone_factor + share * (self.token_factor - self.alone_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFigures:
    """The options of ``launch`` under which a profile was measured, and holds."""

    device: str
    dtype: str
    threads: int
    exact: bool

    def __post_init__(self) -> None:
        for name in ("device", "dtype"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigError(f"launch.{name} is {value!r}; it must be a name")
        if type(self.threads) is not int or self.threads < 1:
            raise ConfigError(f"launch.threads is {self.threads!r}; a whole number from 1 up")
        if type(self.exact) is not bool:
            raise ConfigError(f"launch.exact is {self.exact!r}; true or false")


def read_part(kind: type[Figures], entry: Any, where: str) -> Figures:
    """A dataclass from its object in a file. ConfigError names what is missing or too much."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must be an object")
    check_fields(kind, entry, f"{where}: ")
    return kind(**entry)


def read_optional(kind: type[Figures], entry: Any, where: str) -> Figures | None:
    """The same where the file may have nothing."""
    return None if entry is None else read_part(kind, entry, where)


def check_fields(kind: type[Figures], entry: dict[str, Any], where: str = "") -> None:
    """ConfigError unless all fields without a default are there, and none that is unknown.

    A field with a default came later than some files.
    """
    known = fields(kind)
    required = {
        each.name for each in known if each.default is MISSING and each.default_factory is MISSING
    }
    missing = sorted(required - set(entry))
    unknown = sorted(set(entry) - {each.name for each in known})
    if unknown or missing:
        raise ConfigError(f"{where}missing fields {missing}, unknown fields {unknown}")


def check_numbers(where: str, figures: Any, may_be_zero: tuple[str, ...]) -> None:
    """ConfigError for a field that is no number of its type, or not above 0."""
    for field in fields(figures):
        value = getattr(figures, field.name)
        if field.name == "name":
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{where}.name is {value!r}; it must be a name")
            continue
        if value is None and "None" in str(field.type):
            continue
        if field.type == "bool" and isinstance(value, bool):
            continue
        is_whole = str(field.type).startswith("int")
        kinds = (int,) if is_whole else (int, float)
        if type(value) not in kinds or not -LARGEST < value < LARGEST:
            kind = "a whole number" if is_whole else "a number"
            raise ConfigError(f"{where}.{field.name} is {value!r}; it must be {kind}")
        if value < 1 / LARGEST and not (value == 0 and field.name in may_be_zero):
            raise ConfigError(f"{where}.{field.name} is {value!r}; it must be above 0")
