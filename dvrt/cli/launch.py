"""``dvrt launch``: a pipeline that serves until it is told to stop, or answers one prompt."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import dvrt
from dvrt.cli.answer import PromptOptions, answer_as_json, answer_as_text
from dvrt.cli.display import StartDisplay
from dvrt.cli.parameters import with_options
from dvrt.cli.serving import refuse_unservable, serve
from dvrt.cli.signals import StopSignals, run
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError
from dvrt.options import make_options, options_of, read_toml

CLEANUP_LIMIT_S = 15.0
"""How long after the drain limit an ordered end may take before it is forced."""


@with_options("model", settings=LaunchOptions, asked=PromptOptions)
def launch(
    *,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help=options_of(LaunchOptions)["model"].help),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with the same keys; options win")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="end the answer at this text; repeatable"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print the answer as one JSON object")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    settings: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    """Serve MODEL over HTTP from a pipeline, or answer one prompt."""
    given = settings if model is None else {"model": model, **settings}
    values = {**(read_toml(config) if config else {}), **given}
    options = LaunchOptions.make(**values)
    question = make_options(PromptOptions, asked)
    if question.source is None and (json or stop):
        raise ConfigError(f"{'json' if json else 'stop'} is given without a prompt; add --prompt")
    if not all(stop or ()):
        raise ConfigError("stop is ''; every text contains it")
    if question.source is None:
        refuse_unservable(options)

    async def command(signals: StopSignals) -> int:
        if question.source is None:
            return await serve(options, values, signals)
        return await _answer(values, question, tuple(stop or ()), as_json=json)

    limit_s = options.drain_limit_s + CLEANUP_LIMIT_S
    raise typer.Exit(run(command, loop=options.loop, limit_s=limit_s))


async def _answer(
    values: dict[str, Any], question: PromptOptions, stop: tuple[str, ...], *, as_json: bool
) -> int:
    assert question.source is not None
    async with AsyncExitStack() as stack:
        with StartDisplay(Console(stderr=True)) as display:
            engine = await stack.enter_async_context(
                dvrt.launch(**values, on_progress=display.update)
            )
        how = answer_as_json if as_json else answer_as_text
        await how(engine, question.source, question.for_engine(stop))
    return 0
