"""``bench swap``: one budget of device memory, twice the batch with swapping over none.

The paper's Fig. 9. The real runtime with the null device under virtual time for OPT-66B and
BLOOM-176B, and a model that computes on the CPU behind a link of limited bandwidth.
"""

from __future__ import annotations

import asyncio
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.common import Measured, spread
from dvrt.bench.null_times import stage_timing, write_timing
from dvrt.errors import StageFailed
from dvrt.models.null_timing import NullTiming
from dvrt.planner.profile import Profile, open_profile
from dvrt.planner.swapping import SwapJudgement, judge_swapping
from dvrt.virtual import run_virtual

PROMPT, OUTPUT, BATCH = 64, 128, 4
GPUS = 2
MODELS = {"opt66b": ("opt-66b-a100-80", 4), "bloom176b": ("bloom-176b-a100-80", 7)}
LONG_BATCH, LONG_PROMPT, LONG_OUTPUT = 8, 1000, 210

CPU_STAGES, CPU_BATCH, CPU_PROMPT, CPU_OUTPUT = 3, 4, 32, 64
CPU_BANDWIDTH = 4e9
CPU_MODEL: dict[str, Any] = {"n_layers": 6, "hidden_size": 512, "n_heads": 8, "max_positions": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """So many equal requests at once, through so many stages and microbatches."""

    stages: int
    microbatches: int
    requests: int
    prompt: int
    output: int


def measure(*, quick: bool) -> Measured:
    """All figures. ``quick`` has fewer requests and repeats."""
    results: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    with _scratch() as folder:
        for name, (profile, stages) in MODELS.items():
            found = _large(folder, open_profile(profile).with_gpus(GPUS), stages, quick=quick)
            results[name] = found
            ratios[f"{name}_swap_gain"] = found["gain"]
            ratios[f"{name}_vs_bound"] = found["gain"] / found["bound"]
        results["cpu_model"] = asyncio.run(_small(folder, repeats=1 if quick else 3))
    ratios["cpu_model_swap_gain"] = results["cpu_model"]["gain"]["median"]
    notes = [
        "gain: tokens a second of batch 2B with swapping over batch B without, one KV budget",
        "bound: 2 N t over sum max(t, transfer_i) at the same step times (DejaVu, appendix G)",
        f"A100-80 x {GPUS} a machine, derived profiles; the paper's best is 1.8",
        "cpu_model: predicted from the step times and the bandwidth that the stages measured",
    ]
    return Measured(results=results, ratios=ratios, notes=notes)


def _large(folder: Path, profile: Profile, stages: int, *, quick: bool) -> dict[str, Any]:
    """One large model on the null device under virtual time."""
    timing = stage_timing(profile, math.ceil(profile.model.layers / stages))
    load = Load(
        stages=stages,
        microbatches=stages,
        requests=stages * BATCH * (2 if quick else 4),
        prompt=PROMPT,
        output=OUTPUT,
    )
    bandwidth = profile.machine.host_to_device
    plain_s, _ = _virtual_s(folder, timing, load, BATCH)
    swap = {"swap": True, "swap_bandwidth": int(bandwidth)}
    swapped_s, exposed = _virtual_s(folder, timing, load, 2 * BATCH, **swap)
    row_bytes = timing.entry_bytes * (PROMPT + OUTPUT)
    contexts = range(PROMPT + 1, PROMPT + OUTPUT + 1)
    return {
        "stages": stages,
        "plain_s": plain_s,
        "swapped_s": swapped_s,
        "gain": plain_s / swapped_s,
        "bound": _bound(timing, bandwidth, contexts, BATCH),
        "waited_share": exposed,
        "plain_device_kv_bytes": stages * BATCH * row_bytes,
        "swapped_device_kv_bytes": 2 * 2 * BATCH * row_bytes,
        "swapped_host_kv_bytes": stages * 2 * BATCH * row_bytes,
        "long_contexts": _long(folder, timing, stages, bandwidth),
    }


def _long(folder: Path, timing: NullTiming, stages: int, bandwidth: float) -> dict[str, Any]:
    """What is refused: batch 8 doubled, with prompts of 1000 and outputs of 210."""
    contexts = range(LONG_PROMPT + 1, LONG_PROMPT + LONG_OUTPUT + 1)
    judged = _judge(timing, bandwidth, contexts, 2 * LONG_BATCH)
    load = Load(
        stages=stages, microbatches=stages, requests=1, prompt=LONG_PROMPT, output=LONG_OUTPUT
    )
    why = ""
    logging.disable(logging.WARNING)  # the log says the same
    try:
        _virtual_s(folder, timing, load, 2 * LONG_BATCH, swap=True, swap_bandwidth=int(bandwidth))
    except StageFailed as error:
        why = str(error)
    finally:
        logging.disable(logging.NOTSET)
    return {
        "batch": LONG_BATCH,
        "gain_predicted": judged.gain,
        "refused": bool(why),
        "why": why,
    }


def _judge(
    timing: NullTiming, bandwidth: float, contexts: Sequence[int], batch: int
) -> SwapJudgement:
    middle = contexts[len(contexts) // 2]
    return judge_swapping(
        step_s=timing.decode_step_s([middle] * batch),
        batch_size=batch,
        entry_bytes=timing.entry_bytes,
        bandwidth=bandwidth,
        contexts=contexts,
    )


def _bound(timing: NullTiming, bandwidth: float, contexts: Sequence[int], batch: int) -> float:
    """Twice the plain steps' time over that of steps of twice the rows, or of their swap-in."""
    plain_s = sum(timing.decode_step_s([n] * batch) for n in contexts)
    doubled = 2 * batch
    swapped_s = sum(
        max(timing.decode_step_s([n] * doubled), n * doubled * timing.entry_bytes / bandwidth)
        for n in contexts
    )
    return 2 * plain_s / swapped_s


def _virtual_s(
    folder: Path, timing: NullTiming, load: Load, batch: int, **options: Any
) -> tuple[float, float]:
    """Virtual seconds until all requests are answered; the share that compute waited for copies."""
    from dvrt.models.tiny import write_tiny

    model = folder / f"null-{load.stages}"
    if not model.exists():
        write_tiny(model, "gpt2", n_layers=load.stages, hidden_size=16, max_positions=2048)
    times = write_timing(folder / "times.toml", timing)
    launch = dvrt.launch(
        model,
        stages=load.stages,
        microbatches=load.microbatches,
        batch_size=batch,
        max_context=load.prompt + load.output,
        max_queue=load.requests,
        device="null",
        null_timing=str(times),
        in_process=True,
        heartbeat_s=1.0,
        lease_s=30.0,
        replicas=0,
        **options,
    )

    async def main() -> tuple[float, float]:
        async with launch as engine:
            return await _work(engine, load)

    return run_virtual(main(), seed=None)


async def _work(engine: dvrt.Engine, load: Load) -> tuple[float, float]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(_ask(engine, load, number) for number in range(load.requests)))
    seconds = loop.time() - began
    waited = [worker.swap.get("waited_s", 0.0) for worker in engine.status().workers]
    return seconds, max(waited, default=0.0) / seconds


async def _ask(engine: dvrt.Engine, load: Load, number: int) -> None:
    prompt = [(number * 31 + i * 7) % 300 for i in range(load.prompt)]
    answer = await engine.complete(prompt, max_tokens=load.output, temperature=0.0, ignore_eos=True)
    assert len(answer.token_ids) == load.output


async def _small(folder: Path, *, repeats: int) -> dict[str, Any]:
    """A real model on the CPU: batch B without swapping and 2B with it take turns."""
    from dvrt.models.tiny import write_tiny

    model = write_tiny(folder / "cpu", "gpt2", **CPU_MODEL)
    microbatches = CPU_STAGES + 1
    load = Load(
        stages=CPU_STAGES,
        microbatches=microbatches,
        requests=2 * microbatches * CPU_BATCH,
        prompt=CPU_PROMPT,
        output=CPU_OUTPUT,
    )
    swap = {"swap": True, "swap_bandwidth": int(CPU_BANDWIDTH)}
    gains: list[float] = []
    predicted: list[float] = []
    sides: dict[str, list[float]] = {"plain_s": [], "swapped_s": []}
    for _ in range(repeats):
        plain_s, plain = await _serve(model, load, CPU_BATCH)
        swapped_s, swapped = await _serve(model, load, 2 * CPU_BATCH, **swap)
        gains.append(plain_s / swapped_s)
        predicted.append(_predict(plain, swapped))
        sides["plain_s"].append(plain_s)
        sides["swapped_s"].append(swapped_s)
    return {
        "stages": CPU_STAGES,
        "batch": CPU_BATCH,
        "bandwidth_limit": CPU_BANDWIDTH,
        "gain": spread(gains),
        "gain_predicted": spread(predicted),
        **{name: spread(seconds) for name, seconds in sides.items()},
        "plain_device_kv_bytes": max(worker.kv_bytes for worker in plain.workers),
        "swapped_device_kv_bytes": max(worker.kv_bytes for worker in swapped.workers),
        "swapped_host_kv_bytes": max(worker.swap["host_kv_bytes"] for worker in swapped.workers),
    }


def _predict(plain: dvrt.Status, swapped: dvrt.Status) -> float:
    """2 N t over sum max(t, transfer_i), with each side's mean t and the bandwidth reached.

    Of the slowest stage; its prompts' steps are among those of which t is the mean.
    """
    plain_s = max(worker.busy_s / worker.steps for worker in plain.workers)
    step_s = max(worker.busy_s / worker.steps for worker in swapped.workers)
    swap = max((worker.swap for worker in swapped.workers), key=lambda swap: swap["step_s"])
    hidden = swap["hidden_context"] * step_s / swap["step_s"]
    contexts = range(CPU_PROMPT + 1, CPU_PROMPT + CPU_OUTPUT + 1)
    return 2 * plain_s * len(contexts) / sum(step_s * max(1.0, n / hidden) for n in contexts)


async def _serve(model: Path, load: Load, batch: int, **options: Any) -> tuple[float, dvrt.Status]:
    launch = dvrt.launch(
        model,
        device="cpu",
        stages=load.stages,
        microbatches=load.microbatches,
        batch_size=batch,
        max_context=load.prompt + load.output,
        chunk_tokens=load.prompt,
        max_queue=load.requests,
        replicas=0,
        **options,
    )
    async with launch as engine:
        seconds, _ = await _work(engine, load)
        return seconds, engine.status()


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
