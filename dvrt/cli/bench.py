"""``dvrt bench NAME``: measurements by name, imported when they are chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dvrt.cli.signals import StopSignals, interruptible, run

if TYPE_CHECKING:
    from dvrt.bench.common import Measured

BENCHMARKS = {
    "disagg": "Prompts apart from tokens over one pipeline for both, by the rates they keep.",
    "fidelity": "The simulator beside the runtime, on the same requests.",
    "gpu": "Copies between a GPU and its host, as shares of what the links allow.",
    "modes": "The four ways to stream a KV cache, in the paper's layout.",
    "overhead": "What streaming every new KV entry away costs a model that generates.",
    "pipeline": "How busy four stages are kept, and what a hop costs.",
    "recovery": "Latency with a lost worker over latency without: respawned, or a spare.",
    "replication": "What copies of every log cost while nothing fails.",
    "serve": "Tokens a second, against transformers' generate on the same requests.",
    "simulate": "The planner's sweep of one model.",
    "startup": "Seconds until four workers are ready, against one.",
    "swap": "Twice the batch with swapping over none, in one budget of device memory.",
    "transfer": "Bytes between processes, against memcpy, a raw socket and NIXL.",
}
"""``dvrt.bench.NAME`` has ``measure(*, quick: bool) -> Measured`` for each."""

CLEANUP_LIMIT_S = 10.0

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Quick = Annotated[bool, typer.Option("--quick", help="end within a minute; fewer repeats")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]

bench = typer.Typer(
    help="Measure: a table, or one JSON object.", no_args_is_help=True, rich_markup_mode=None
)


def _command(name: str) -> Callable[..., None]:
    def command(json: AsJson = False, quick: Quick = False, debug: Debug = False) -> None:
        show(name, quick=quick, as_json=json)

    return command


for _name, _help in BENCHMARKS.items():
    bench.command(_name, help=_help)(_command(_name))


@bench.command("all")
def every(json: AsJson = False, quick: Quick = False, debug: Debug = False) -> None:
    """All of these, one after the other."""
    for name in BENCHMARKS:
        show(name, quick=quick, as_json=json)


@bench.command()
def load(
    *,
    url: Annotated[str, typer.Option("--url", help="an OpenAI-compatible server")],
    model: Annotated[str | None, typer.Option(help="default: the first it offers")] = None,
    api_key: Annotated[str | None, typer.Option(help="the server's key")] = None,
    rate_per_s: Annotated[float, typer.Option(help="mean of the Poisson arrivals")] = 1.0,
    n_requests: Annotated[int | None, typer.Option(help="default: 100, or the trace's")] = None,
    trace: Annotated[Path | None, typer.Option(help="file of lengths, perhaps arrivals")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="length of each prompt")] = 128,
    output_tokens: Annotated[int, typer.Option(help="length of each answer")] = 64,
    text: Annotated[bool, typer.Option("--text", help="send words, not token ids")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="as conversations; implies --text")] = False,
    seed: Annotated[int, typer.Option(help="of arrivals and prompts")] = 0,
    limit_s: Annotated[float, typer.Option(help="for one answer")] = 600.0,
    json: AsJson = False,
    quick: Quick = False,
    debug: Debug = False,
) -> None:
    """Open-loop load on any OpenAI-compatible server, with its latencies."""
    from dvrt.bench.common import write_json
    from dvrt.bench.load import run_load
    from dvrt.bench.load_options import LoadOptions

    options = LoadOptions(
        url=url,
        model=model,
        api_key=api_key,
        rate_per_s=rate_per_s,
        n_requests=20 if quick and n_requests is None else n_requests,
        trace=trace,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prompts="text" if text or chat else "ids",
        chat=chat,
        seed=seed,
        limit_s=limit_s,
    )

    async def command(_signals: StopSignals) -> int:
        report = await run_load(options)
        if json:
            await asyncio.to_thread(write_json, "load", report.measured())
        else:
            Console().print(report.table())
        return 0 if not report.errors else 1

    raise typer.Exit(run(command, loop="auto", limit_s=CLEANUP_LIMIT_S))


def show(name: str, *, quick: bool, as_json: bool) -> None:
    """Measure ``name`` and print what was found. A signal ends it and what it has started."""
    from dvrt.bench.common import write_json

    with interruptible():
        measured = import_module(f"dvrt.bench.{name}").measure(quick=quick)
    if as_json:
        write_json(name, measured)
    else:
        Console().print(*tables(name, measured), "", sep="\n")


def tables(name: str, measured: Measured) -> Iterator[Table | str]:
    """The promised ratios, everything measured, and the notes."""
    if measured.ratios:
        ratios = Table("ratio", "value", title=f"bench {name}", title_justify="left")
        for key, value in measured.ratios.items():
            ratios.add_row(key, f"{value:.4g}")
        yield ratios
    details = Table("measured", "median", "least", "most", title_justify="left")
    for path, value in _leaves(measured.results):
        spread = value if isinstance(value, Mapping) else {"median": value}
        cells = [spread.get(key, "") for key in ("median", "min", "max")]
        details.add_row(path, *(_cell(cell) for cell in cells))
    yield details
    yield from (escape(f"note: {note}") for note in measured.notes)


def _leaves(results: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths to single values and to spreads, which hold a median; lists stay in JSON."""
    for key, value in results.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and "median" not in value:
            yield from _leaves(value, f"{path}.")
        elif not isinstance(value, (list, tuple)):
            yield path, value


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
