"""``bench serve``: requests of mixed lengths through dvrt and through transformers' generate.

Both sides have the same threads. generate gets its requests in padded batches in the order in which
they come, each batch running until its longest output; or one by one. The planner's tokens a second
from step times of the same minute stand beside dvrt's.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.common import Measured, require_storyteller, run_like_launch, spread
from dvrt.bench.profile_steps import StepFits, StepGrid, fit_samples, measure_steps
from dvrt.models.check import inspect_checkpoint
from dvrt.models.spec import EXTENT_TOKENS, StageSpec
from dvrt.planner.predict import Deployment, predict_burst, prediction_error

HF_BATCH = 16
MICROBATCHES = 2
"""Rows for two requests of three, and whoever waits gets a row as soon as one ends. With a third
microbatch each would have its row at once, and half of all rows would soon stand empty, as in the
batches of ``generate``; a step costs nearly the same with few rows as with all."""
SINGLES, LARGE_SINGLES = 8, 3
"""Each round so many of the requests, others each time, go to ``generate`` one by one; of a large
model fewer, since each of them takes seconds."""
MAX_CONTEXT = 256
PROFILE_ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    prompt: list[int]
    n_tokens: int


def make_wishes(n: int, vocab_size: int, *, equal: bool = False, seed: int = 1) -> list[Wish]:
    """Prompts of 16 to 128 and outputs of 16 to 96 tokens; ``equal`` gives all the mean lengths."""
    rng = random.Random(seed)
    return [
        Wish(
            prompt=[
                rng.randrange(vocab_size) for _ in range(72 if equal else rng.randint(16, 128))
            ],
            n_tokens=56 if equal else rng.randint(16, 96),
        )
        for _ in range(n)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pass over all wishes."""

    seconds: float
    n_tokens: int
    first_token_s: float | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / self.seconds


class Generate:
    """transformers' generate on one checkpoint, greedy, ends ignored."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._model = model.eval()

    def run(self, wishes: list[Wish], *, batch: int, threads: int) -> Run:
        self._torch.set_num_threads(threads)
        began = time.monotonic()
        for first in range(0, len(wishes), batch):
            self._batch(wishes[first : first + batch])
        seconds = time.monotonic() - began
        self._torch.set_num_threads(1)
        return Run(seconds=seconds, n_tokens=sum(wish.n_tokens for wish in wishes))

    def _batch(self, wishes: list[Wish]) -> None:
        torch = self._torch
        width = max(len(wish.prompt) for wish in wishes)
        ids = torch.tensor([[0] * (width - len(w.prompt)) + w.prompt for w in wishes])
        mask = torch.tensor([[0] * (width - len(w.prompt)) + [1] * len(w.prompt) for w in wishes])
        longest = max(wish.n_tokens for wish in wishes)
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=longest,
                min_new_tokens=longest,
                do_sample=False,
                pad_token_id=0,
            )


class Served:
    """A dvrt pipeline that stays up between passes."""

    def __init__(self, engine: dvrt.Engine) -> None:
        self._engine = engine

    async def run(self, wishes: list[Wish]) -> Run:
        began = time.monotonic()
        done = await asyncio.gather(
            *(
                self._engine.complete(
                    wish.prompt, max_tokens=wish.n_tokens, temperature=0.0, ignore_eos=True
                )
                for wish in wishes
            )
        )
        return Run(
            seconds=time.monotonic() - began,
            n_tokens=sum(len(each.token_ids) for each in done),
            first_token_s=statistics.median(each.timings.first_token_s for each in done),
        )


@asynccontextmanager
async def serving(directory: Path, **options: Any) -> AsyncIterator[Served]:
    async with dvrt.launch(
        directory, max_context=MAX_CONTEXT, batch_size=HF_BATCH, **options
    ) as engine:
        yield Served(engine)


Pass = Callable[[], Awaitable[Run]]


def measure(*, quick: bool) -> Measured:
    """Mixed and equal lengths on the demo model; mixed ones on a GPT-2-124M shape unless quick."""
    return run_like_launch(_measure(quick))


async def _measure(quick: bool) -> Measured:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        models = {"storyteller": require_storyteller()}
        if not quick:
            models["gpt2-124m"] = await asyncio.to_thread(_write_gpt2, Path(scratch) / "gpt2")
        for name, directory in models.items():
            is_small = name == "storyteller"
            for lengths in ("mixed", "equal") if is_small else ("mixed",):
                results[f"{name}.{lengths}"] = await _compare(
                    directory,
                    equal=lengths == "equal",
                    n=16 if quick else 48,
                    is_small=is_small,
                    with_single=lengths == "mixed",
                )
    return Measured(results=results, ratios=_ratios(results), notes=_notes(results))


def _write_gpt2(directory: Path) -> Path:
    from dvrt.models.tiny import write_tiny

    return write_tiny(
        directory,
        "gpt2",
        n_layers=12,
        hidden_size=768,
        n_heads=12,
        vocab_size=50257,
        max_positions=1024,
    )


async def _compare(
    directory: Path, *, equal: bool, n: int, is_small: bool, with_single: bool
) -> dict[str, Any]:
    """Every side in turn, several times over, all in this run."""
    generate = await asyncio.to_thread(Generate, directory)
    wishes = make_wishes(n, vocab_size=2000, equal=equal)

    def peer(batch: int, threads: int) -> Pass:
        return lambda: asyncio.to_thread(generate.run, wishes, batch=batch, threads=threads)

    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(
            serving(directory, stages=1, microbatches=MICROBATCHES)
        )
        two = await stack.enter_async_context(
            serving(directory, stages=2, microbatches=MICROBATCHES)
        )
        fast = await stack.enter_async_context(
            serving(directory, stages=1, microbatches=MICROBATCHES, exact=False)
        )
        passes: dict[str, Pass] = {
            "one_stage": lambda: one.run(wishes),
            "hf_batch_1_thread": peer(HF_BATCH, 1),
            "two_stages": lambda: two.run(wishes),
            "hf_batch_2_threads": peer(HF_BATCH, 2),
            "one_stage_fast": lambda: fast.run(wishes),
        }
        runs: dict[str, list[Run]] = {name: [] for name in passes}
        predicted: dict[str, list[float]] = {}
        for number in range(3 if is_small else 2):
            is_whole = is_small or number == 0  # of a large model, what no bar is about once
            for name, one_pass in passes.items():
                if is_whole or name != "one_stage_fast":
                    runs[name].append(await one_pass())
            if with_single:  # slow, and a few requests are enough for tokens a second
                n_few = SINGLES if is_small else LARGE_SINGLES
                few = wishes[number :: len(wishes) // n_few]
                single = await asyncio.to_thread(generate.run, few, batch=1, threads=1)
                runs.setdefault("hf_single_1_thread", []).append(single)
            if not is_whole:
                continue
            for name, rate in (await asyncio.to_thread(_predict, directory, wishes)).items():
                predicted.setdefault(name, []).append(rate)
    return {name: _summary(each, predicted.get(name, [])) for name, each in runs.items()}


def _predict(directory: Path, wishes: list[Wish]) -> dict[str, float]:
    """The planner's tokens a second for dvrt's sides, from step times measured now."""
    n_tokens = sum(wish.n_tokens for wish in wishes)
    fits = {exact: _measure_fits(directory, exact=exact) for exact in (True, False)}
    n_layers = inspect_checkpoint(directory).n_layers
    predicted = {}
    for name, exact, stages in (
        ("one_stage", True, 1),
        ("two_stages", True, 2),
        ("one_stage_fast", False, 1),
    ):
        times = fits[exact].stage_times(-(-n_layers // stages))
        shape = Deployment(stages=stages, microbatches=MICROBATCHES, batch_size=HF_BATCH)
        width = EXTENT_TOKENS if exact else 1  # exact mode computes whole chunks
        lengths = [(-(-len(w.prompt) // width) * width, w.n_tokens) for w in wishes]
        predicted[name] = n_tokens / predict_burst(times, shape, lengths)
    return predicted


def _measure_fits(directory: Path, *, exact: bool) -> StepFits:
    """Steps of one stage with all layers, as the sides compute them."""
    n_layers = inspect_checkpoint(directory).n_layers

    def make_spec(batch: int) -> StageSpec:
        return StageSpec(
            directory=str(directory),
            first=0,
            stop=n_layers,
            n_layers=n_layers,
            dtype="float32",
            n_microbatches=1,
            batch_size=batch,
            max_context=MAX_CONTEXT,
            exact=exact,
        )

    grid = StepGrid(
        batches=(HF_BATCH,),
        prompt_lengths=(64, 128),
        contexts=(64, 128, 192),
        rounds=PROFILE_ROUNDS,
    )
    return fit_samples(measure_steps(make_spec, grid))


def _summary(runs: list[Run], predicted: list[float]) -> dict[str, Any]:
    measured = spread(run.tokens_per_s for run in runs)
    summary: dict[str, Any] = {"tokens_per_s": measured}
    if predicted:
        expected = spread(predicted)
        summary["predicted_tokens_per_s"] = expected
        error = prediction_error(expected["median"], measured["median"])
        summary["prediction_error"] = error
    first = [run.first_token_s for run in runs if run.first_token_s is not None]
    if first:
        summary["first_token_s"] = spread(first)
    return summary


def _ratios(results: dict[str, Any]) -> dict[str, float]:
    """Of the mixed lengths; the lower of the models."""

    def ratio(ours: str, theirs: str) -> float:
        values: list[float] = [
            sides[ours]["tokens_per_s"]["median"] / sides[theirs]["tokens_per_s"]["median"]
            for name, sides in results.items()
            if name.endswith(".mixed")
        ]
        return min(values)

    return {
        "one_stage_vs_hf_batch": ratio("one_stage", "hf_batch_1_thread"),
        "two_stages_vs_hf_batch": ratio("two_stages", "hf_batch_2_threads"),
        "one_stage_vs_hf_single": ratio("one_stage", "hf_single_1_thread"),
        "exact_cost": 1 / ratio("one_stage", "one_stage_fast"),
    }


def _notes(results: dict[str, Any]) -> list[str]:
    notes = ["one thread for each stage, and as many for generate as the stages have together"]
    if len(os.sched_getaffinity(0)) < 2:
        notes.append("only one core: two stages share it")
    notes.append("prediction_error: predicted over measured tokens a second, less one")
    if len(results) < 3:
        notes.append("quick: fewer requests, the demo model only")
    return notes
