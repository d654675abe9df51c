"""``dvrt demo``: the small model of this repository tells stories through a pipeline of workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

import dvrt
from dvrt.cli.display import StartDisplay, by_stage, layers_text, workers_table
from dvrt.cli.signals import StopSignals, run
from dvrt.config import LaunchOptions
from dvrt.options import format_size, options_of
from dvrt.results import Status

if TYPE_CHECKING:
    from dvrt.actors.engine import Engine

STORYTELLER = Path(dvrt.__file__).parents[1] / "examples" / "storyteller"
PROMPTS = (
    "Once upon a time",
    "One day",
    "In the morning",
    "There was a little",
    "The old man",
    "The girl",
    "It was cold",
    "Far away",
)
MAX_TOKENS = 320
TEMPERATURE = 0.8
CLEANUP_LIMIT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What became of one prompt; times in seconds."""

    prompt: str
    n_tokens: int
    first_token_s: float
    total_s: float
    finish_reason: str

    @property
    def tokens_per_s(self) -> float:
        return (self.n_tokens - 1) / max(self.total_s - self.first_token_s, 1e-9)


def demo(
    *,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="a checkpoint with a tokenizer", show_default="the storyteller"
        ),
    ] = STORYTELLER,
    stages: Annotated[int, typer.Option("--stages", help="pipeline stages, one worker each")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="the same seed tells the same stories")] = 7,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Tell a story, and seven more beside it, from a pipeline of workers."""
    known = options_of(LaunchOptions)
    stages, seed = known["stages"].take(stages), max(0, seed)

    async def command(_signals: StopSignals) -> int:
        await show(str(model), stages=stages, seed=seed)
        return 0

    raise typer.Exit(run(command, loop="auto", limit_s=CLEANUP_LIMIT_S))


async def show(model: str, *, stages: int, seed: int) -> None:
    """Launch the pipeline, tell the stories, say what happened; everything goes to stdout."""
    console = Console(highlight=False)
    async with AsyncExitStack() as stack:
        with StartDisplay(Console(stderr=True)) as display:
            engine = await stack.enter_async_context(
                dvrt.launch(model, stages=stages, batch_size=4, on_progress=display.update)
            )
        card = engine.model
        console.print(f"\n{card.name}: {card.n_layers} layers of {card.family} in {stages} workers")
        console.print(workers_table(engine.status().workers), "")
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(_tell(engine, prompt, seed)) for prompt in PROMPTS[1:]]
            told = await _tell(engine, PROMPTS[0], seed, console)
        stories = [told, *(task.result() for task in beside)]
        console.print("", stories_table(stories), "", work_table(engine.status()))


async def _tell(engine: Engine, prompt: str, seed: int, console: Console | None = None) -> Story:
    """Have one story told; to ``console`` word by word, if there is one."""
    if console is not None:
        console.print(prompt, style="bold", end="")
    loop = asyncio.get_running_loop()
    began = loop.time()
    times: list[float] = []
    reason = ""
    options = {"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, "seed": seed}
    async with aclosing(engine.generate(prompt, **options)) as tokens:
        async for token in tokens:
            times.append(loop.time() - began)
            reason = token.finish_reason.value if token.finish_reason else reason
            if console is not None:
                console.print(token.text, end="", markup=False, soft_wrap=True)
    if console is not None:
        console.print()
    return Story(
        prompt=prompt,
        n_tokens=len(times),
        first_token_s=times[0],
        total_s=times[-1],
        finish_reason=reason,
    )


def stories_table(stories: Sequence[Story]) -> Table:
    """One line a request: its tokens, how long it waited, how fast it went, why it ended."""
    table = Table(title="requests, all at once; the first is the story above", title_justify="left")
    table.add_column("prompt")
    for column in ("tokens", "first token", "tokens/s"):
        table.add_column(column, justify="right")
    table.add_column("ended by")
    for story in stories:
        table.add_row(
            story.prompt,
            str(story.n_tokens),
            f"{story.first_token_s * 1e3:.0f} ms",
            f"{story.tokens_per_s:.0f}",
            story.finish_reason,
        )
    return table


def work_table(status: Status) -> Table:
    """One line a worker: the steps it computed and how long its device was busy with them."""
    table = Table(title="workers", title_justify="left")
    table.add_column("worker")
    table.add_column("layers")
    for column in ("steps", "device busy", "mean step", "KV cache"):
        table.add_column(column, justify="right")
    for worker in by_stage(status.workers):
        mean_ms = worker.busy_s / worker.steps * 1e3 if worker.steps else 0.0
        table.add_row(
            worker.name,
            layers_text(worker.layers),
            str(worker.steps),
            f"{worker.busy_s:.2f} s",
            f"{mean_ms:.1f} ms",
            format_size(worker.kv_bytes),
        )
    return table
