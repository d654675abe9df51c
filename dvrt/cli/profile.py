"""``dvrt profile``: what a model costs, measured on this machine, derived, or converted."""

from __future__ import annotations

import json as json_format
import shlex
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dvrt.cli.parameters import with_options
from dvrt.cli.places import check_places
from dvrt.cli.signals import interruptible
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError
from dvrt.options import format_size, make_options, option
from dvrt.planner.imports import model_info_of, profile_from_model_info
from dvrt.planner.model_info import merge_model_info, read_model_info, read_model_infos
from dvrt.planner.profile import Profile, open_profile, profile_text
from dvrt.planner.roofline import derive_profile, read_gpu
from dvrt.planner.shapes import open_shape
from dvrt.planner.step_fit import TERMS, Sample, StepFit

if TYPE_CHECKING:
    from dvrt.bench.profiler import MeasuredProfile

FORMATS = ("profile", "model_info")
USUAL_LENGTH = 1000
BATCHES = (1, 2, 4, 8, 16, 32)
_WORDS = {"1": "", "b": "B", "bl": "B L", "bll": "B L^2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What ``profile`` asks for."""

    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    dtype: str = option(
        "auto", help="number format", choices=("auto", "float32", "bfloat16", "float16")
    )
    threads: int = option(1, help="compute threads", low=1, high=1024)
    exact: bool = option(True, help="as launch computes by default; --no-exact is faster")
    chunk_tokens: int = option(64, help="prompt positions of one step", unit="tokens", low=1)
    batch_sizes: tuple[int, ...] | None = option(
        None, help="rows of a microbatch", otherwise=",".join(map(str, BATCHES))
    )
    prompt_lengths: tuple[int, ...] | None = option(
        None, help="of prompts and contexts", otherwise="64,128,256,512 as far as the model goes"
    )
    layers: int | None = option(
        None, help="measure only the last so many layers", otherwise="all", low=1
    )
    rounds: int = option(9, help="repeats, of which the median counts", low=3, high=1000)
    roofline: str | None = option(
        None, help="derive from the peak rates in this TOML file; nothing is measured"
    )
    from_model_info: str | None = option(
        None, help="take the times from this model_info.json; MODEL is the name in it"
    )
    like: str | None = option(None, help="with from_model_info: the profile to take sizes from")
    out: str | None = option(None, help="file to write", otherwise="the profile's name, .json")
    format: str = option(
        "profile", help="model_info is the public simulators' form", choices=FORMATS
    )

    def check(self) -> None:
        """Raise ConfigError for options that exclude each other."""
        if self.roofline is not None and self.from_model_info is not None:
            raise ConfigError("roofline and from_model_info: one profile has one origin")
        if (self.from_model_info is None) != (self.like is None):
            raise ConfigError("from_model_info and like go together")


@with_options(options=ProfileOptions)
def profile(
    *,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="directory of a checkpoint, or a known model's name"),
    ],
    json: Annotated[bool, typer.Option("--json", help="print the profile as JSON")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    options: dict[str, Any],
) -> None:
    """Measure what MODEL costs on this machine, and write the profile that plan takes."""
    given = make_options(ProfileOptions, options)
    if given.out is not None:
        _require_place(Path(given.out), given.format)
    console = Console(stderr=json)
    if given.roofline is not None:
        made = derive_profile(open_shape(model), read_gpu(Path(given.roofline)))
    elif given.from_model_info is not None:
        made = _converted(model, given)
    else:
        measured = _measured(model, given)
        made = measured.profile
        console.print(*_tables(measured), sep="\n")
    path = Path(given.out or f"{made.name}.json")
    _write(path, made, given)
    if json:
        print(json_format.dumps(made.to_json()))
    console.print(f"{made.origin}: {made.note}", highlight=False, soft_wrap=True)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if given.format == "profile":
        words = ("--profile", str(path), "--machines", "2", "--model", model)
        line = f"python -m dvrt plan {shlex.join(words)}"
        console.print(f"next: {line}", highlight=False, soft_wrap=True)


def _require_place(path: Path, form: str) -> None:
    """Refuse before minutes of measuring what could not be written after them."""
    check_places({"out": path}, ("out",))
    if form == "model_info":
        read_model_infos(path)


def _converted(model: str, given: ProfileOptions) -> Profile:
    info = read_model_info(Path(given.from_model_info or ""), model)
    lengths = given.prompt_lengths or (USUAL_LENGTH,)
    if len(lengths) != 1 or lengths[0] < 1:
        raise ConfigError("with from_model_info prompt_lengths is the one length of its prompts")
    return profile_from_model_info(info, open_profile(given.like or ""), prompt_length=lengths[0])


def _measured(model: str, given: ProfileOptions) -> MeasuredProfile:
    from dvrt.bench.profiler import look_at, make_grid, measure_profile

    blueprint = look_at(
        LaunchOptions.make(
            model=model,
            device=given.device,
            dtype=given.dtype,
            threads=given.threads,
            exact=given.exact,
            chunk_tokens=given.chunk_tokens,
        )
    )
    grid = make_grid(blueprint, given.batch_sizes or BATCHES, given.prompt_lengths, given.rounds)
    console = Console(stderr=True)
    with interruptible(), console.status("measuring") as status:
        return measure_profile(
            blueprint,
            grid,
            layers=given.layers,
            on_progress=lambda what: status.update(f"measuring {what}"),
        )


def _write(path: Path, made: Profile, given: ProfileOptions) -> None:
    length = max(given.prompt_lengths or (max(n for _, n, _ in made.prompt.samples),))
    try:
        if given.format == "profile":
            path.write_text(profile_text(made))
            return
        batches = made.prompt.batches
        info = model_info_of(made, batches=batches, prompt_length=length, context=length)
        merge_model_info(path, info)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _tables(measured: MeasuredProfile) -> Iterator[Table]:
    yield _steps(measured)
    yield _fits(measured)
    yield _machine(measured)


def _steps(measured: MeasuredProfile) -> Table:
    model, steps = measured.profile.model, measured.steps
    title = f"{model.name}: milliseconds of a step, {measured.layers} layers; batches in columns"
    table = Table("step", title=title, title_justify="left")
    for batch in measured.profile.prompt.batches:
        table.add_column(str(batch), justify="right")
    for kind, samples in (
        ("prompts of", steps.prompts),
        ("token at", steps.tokens),
        ("head and draw, rows of", steps.ends),
    ):
        for length, row in _by_length(samples).items():
            table.add_row(f"{kind} {length}", *(_ms(seconds) for seconds in row))
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _by_length(samples: list[Sample]) -> dict[int, list[float]]:
    """Of each length the times in the order of the batch sizes."""
    found: dict[int, list[float]] = {}
    for _, length, seconds in samples:
        found.setdefault(length, []).append(seconds)
    return found


def _fits(measured: MeasuredProfile) -> Table:
    """Of parts the errors are shares of the step that they are parts of."""
    title = "Fits in ms, for B rows of L tokens; errors as shares of a whole step"
    table = Table("part of a step", "time", title=title, title_justify="left")
    for column in ("median error", "worst error"):
        table.add_column(column, justify="right")
    made, steps, layers = measured.profile, measured.steps, measured.layers
    for name, fit, wholes, times in (
        ("prompt: a layer", made.prompt, steps.prompts, layers),
        ("prompt: a stage adds", made.prompt_stage, steps.prompts, 1),
        ("token: a layer", made.token, steps.tokens, layers),
        ("token: a stage adds", made.token_stage, steps.tokens, 1),
        ("head and draw", made.head, steps.ends, 1),
    ):
        if fit is not None:
            table.add_row(name, _formula(fit), *_shown(_shares(fit, wholes, times)))
    table.add_row("prompt: the stage", "the sum", *_shown(measured.prompt_errors))
    table.add_row("token: the stage", "the sum", *_shown(measured.token_errors))
    return table


def _shares(fit: StepFit, wholes: list[Sample], times: int) -> list[float]:
    return [
        times * error * part / whole
        for error, (_, _, part), (_, _, whole) in zip(
            fit.relative_errors(), fit.samples, wholes, strict=True
        )
    ]


def _shown(errors: list[float]) -> tuple[str, str]:
    return f"{statistics.median(errors):.1%}", f"{max(errors):.1%}"


def _formula(fit: StepFit) -> str:
    pairs = zip(TERMS, fit.coefficients, strict=True)
    return " + ".join(
        f"{1000 * value:.3g} {_WORDS[term]}".strip() for term, value in pairs if value
    )


def _machine(measured: MeasuredProfile) -> Table:
    made, links = measured.profile, measured.links
    table = Table("what", title=made.machine.name, title_justify="left")
    table.add_column("value", justify="right")
    table.add_row("weights", format_size(made.model.weight_bytes))
    kv_bytes = made.model.kv_bytes_per_token * made.model.layers
    table.add_row("KV of a token", format_size(kv_bytes))
    for name in ("memcpy", "host_to_device", "device_to_host", "tcp", "shm", "restore", "disk"):
        table.add_row(name.replace("_", " "), f"{getattr(links, name) / 1e9:.3g} GB/s")
    table.add_row("hop to another process", f"{links.hop_s * 1e6:.3g} us")
    recovery = made.recovery
    table.add_row("detection, as configured", f"{recovery.detect_s:.3g} s")
    table.add_row("restart of a worker", f"{recovery.restart_s:.3g} s")
    if (runtime := made.runtime) is not None:
        table.add_row("the runtime: a step", f"{runtime.step_s * 1e6:.3g} us")
        table.add_row("the runtime: a hop", f"{runtime.hop_s * 1e6:.3g} us")
        table.add_row("a killed worker is missed after", f"{runtime.detect_s * 1e3:.3g} ms")
        table.add_row("and replaced, but for its load, after", f"{runtime.restart_s * 1e3:.3g} ms")
    table.add_row("load of the model", f"{recovery.load_s or 0:.3g} s")
    return table
