"""``dvrt demo``: the small model of this repository tells stories through a pipeline of workers,
one of which is killed in the middle of a story."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import string
import time
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
from dvrt.errors import ConfigError, DvrtError
from dvrt.observe.events import Record
from dvrt.options import format_size, options_of
from dvrt.results import Status, WorkerStatus

if TYPE_CHECKING:
    from dvrt.cluster.engine import Engine

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
KILL_AT = 120
"""The token of the first story after which a worker is killed."""
CLEANUP_LIMIT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What became of one prompt; times in seconds."""

    prompt: str
    text: str = ""
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
    kill: Annotated[
        bool, typer.Option("--kill/--no-kill", help="kill a worker in the middle of the story")
    ] = True,
    trace: Annotated[
        str | None, typer.Option("--trace", help="write a Chrome trace of the run to this file")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Tell a story, and seven more beside it, while a worker of the pipeline is killed."""
    if model == STORYTELLER and not model.is_dir():
        raise ConfigError(
            "the storyteller is a model in dvrt's repository (examples/storyteller) and not in its "
            "package; give a MODEL"
        )
    known = options_of(LaunchOptions)
    stages, seed = known["stages"].take(stages), max(0, seed)

    async def command(_signals: StopSignals) -> int:
        await show(str(model), stages=stages, seed=seed, kill=kill, trace=trace)
        return 0

    raise typer.Exit(run(command, loop="auto", limit_s=CLEANUP_LIMIT_S))


async def show(model: str, *, stages: int, seed: int, kill: bool, trace: str | None = None) -> None:
    """Launch the pipeline, tell the stories, say what happened; everything goes to stdout."""
    console = Console(highlight=False)
    logging.getLogger("dvrt").setLevel(logging.ERROR)  # the story says itself who was lost
    async with AsyncExitStack() as stack:
        with StartDisplay(Console(stderr=True)) as display:
            engine = await stack.enter_async_context(
                dvrt.launch(
                    model,
                    stages=stages,
                    batch_size=4,
                    spares=1,
                    trace=trace,
                    on_progress=display.update,
                )
            )
        card = engine.model
        console.print(f"\n{card.name}: {card.n_layers} layers of {card.family} in {stages} workers")
        console.print(workers_table(engine.status().workers), "")
        murder = Murder(engine, console) if kill else None
        stories = await _tell_all(engine, seed, console, murder)
        console.print("", stories_table(stories), "", work_table(engine.status()))
        if murder is not None and murder.victim is not None:
            console.print("", recovery_table(engine.events(), since_s=murder.at_s))
            _compare(stories, await _tell_all(engine, seed), console)


class Murder:
    """Kills a worker from the middle of the pipeline, once, and says so in the story."""

    def __init__(self, engine: Engine, console: Console) -> None:
        self._engine, self._console = engine, console
        self.victim: WorkerStatus | None = None
        self.at_s = 0.0

    def look(self, n_tokens: int) -> None:
        """Called with every token of the story."""
        if n_tokens != KILL_AT:
            return
        workers = by_stage(each for each in self._engine.status().workers if each.role == "stage")
        self.victim = workers[len(workers) // 2]
        self.at_s = time.monotonic()
        os.kill(self.victim.pid, signal.SIGKILL)
        text = f"[{self.victim.name}, process {self.victim.pid}, was killed here]"
        self._console.print(f" {text} ", end="", markup=False, style="bold red")


async def _tell_all(
    engine: Engine, seed: int, console: Console | None = None, murder: Murder | None = None
) -> list[Story]:
    """All stories at once; the first one to ``console``, if there is one."""
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(_tell(engine, prompt, seed)) for prompt in PROMPTS[1:]]
        told = await _tell(engine, PROMPTS[0], seed, console, murder)
    return [told, *(task.result() for task in beside)]


async def _tell(
    engine: Engine,
    prompt: str,
    seed: int,
    console: Console | None = None,
    murder: Murder | None = None,
) -> Story:
    """Have one story told; to ``console`` word by word, if there is one."""
    if console is not None:
        console.print(prompt, style="bold", end="")
    loop = asyncio.get_running_loop()
    began = loop.time()
    times: list[float] = []
    reason = text = ""
    options = {"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, "seed": seed}
    async with aclosing(engine.generate(prompt, **options)) as tokens:
        async for token in tokens:
            times.append(loop.time() - began)
            text += token.text
            reason = token.finish_reason.value if token.finish_reason else reason
            if console is not None:
                console.print(token.text, end="", markup=False, soft_wrap=True)
            if murder is not None:
                murder.look(len(times))
    if console is not None:
        console.print()
    return Story(
        prompt=prompt,
        text=text,
        n_tokens=len(times),
        first_token_s=times[0],
        total_s=times[-1],
        finish_reason=reason,
    )


def _compare(stories: Sequence[Story], again: Sequence[Story], console: Console) -> None:
    """Say whether the stories are those that are told when nobody dies. Raises DvrtError."""
    n_equal = sum(one.text == other.text for one, other in zip(stories, again, strict=True))
    console.print(f"\n{n_equal} of {len(stories)} stories are, letter by letter, those of an")
    console.print("undisturbed run, told just now by the same seed.")
    if n_equal != len(stories):
        raise DvrtError("a story changed when a worker was killed")


def recovery_table(events: Sequence[Record], *, since_s: float) -> Table:
    """What was done about the loss, and when; ``since_s`` is the moment of the kill."""
    table = Table(title="from the kill to the next token", title_justify="left")
    table.add_column("after", justify="right")
    for column in ("what", "is", "why"):
        table.add_column(column)
    for each in events:
        if each.at_s >= since_s and not set(each.subject) <= set(string.hexdigits):
            after = f"{(each.at_s - since_s) * 1e3:.0f} ms"
            table.add_row(after, each.subject, each.state, each.reason)
    return table


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
