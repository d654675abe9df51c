"""``bench recovery``: a worker dies; how much later do the answers come?

The paper's Figs. 10 and 11: the real runtime, null devices and virtual time, prices by the profile
of OPT-66B. Then processes that are killed and stopped while a model on the CPU generates.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dvrt.bench.common import Measured
from dvrt.bench.recovery_real import Size, measure_real
from dvrt.bench.recovery_virtual import STAGES, Prices, Run, Shape, Virtual
from dvrt.models.null_timing import NullTiming
from dvrt.planner.predict import prediction_error
from dvrt.planner.profile import open_profile

PROFILE = "opt-66b-a100-80"
FIG11_LOSSES = 3
LITTLE = 0.05
"""Work done again that is less than this share of the latency is called little."""


def measure(*, quick: bool) -> Measured:
    """All figures. ``quick`` has fewer requests and rounds, and a smaller model on the CPU."""
    with tempfile.TemporaryDirectory() as scratch:
        real = asyncio.run(measure_real(Path(scratch), _quick_size() if quick else Size()))
        start_s = real["kill"]["joined_ms"]["median"] / 1000
        prices = Prices.of(open_profile(PROFILE), start_s=start_s)
        virtual = Virtual(Path(scratch), prices)
        fig10 = measure_fig10(virtual, prices, Shape())
        cold = Virtual(Path(scratch), prices.started_cold())
        fig10["respawn_cold"] = _respawn_cold(cold, prices, Shape(), fig10["plain_s"])
        fig11 = measure_fig11(
            virtual, Shape(requests=4, output=300) if quick else Shape(requests=40)
        )
    little = judge_replication(prices.timing, Shape())
    return Measured(
        results={"fig10": fig10, "fig11": fig11, "real": real, "little": little},
        ratios={
            **{f"fig10_{name}": fig10[name]["ratio"] for name in SIDES},
            "fig11_gain": fig11["gain"],
            "real_spare_latency": real["latency_ratio"]["median"],
            "resume_ms": real["kill"]["resume_ms"]["median"],
            "detect_kill_ms": real["kill"]["detect_ms"]["median"],
            "detect_stop_ms": real["stop"]["detect_ms"]["median"],
        },
        notes=[*_notes(prices), *_advice(little)],
    )


SIDES: dict[str, dict[str, Any]] = {
    "paper_none": {"replicas": 0},
    "recompute": {"replicas": 0, "exact": False},
    "respawn": {"replicas": 1},
    "spare": {"replicas": 1, "spares": 1},
}


def measure_fig10(virtual: Virtual, prices: Prices, shape: Shape) -> dict[str, Any]:
    """Latency with a worker killed at the token ``fail_at``, over that without."""
    plain = virtual.run(shape, replicas=1)
    found: dict[str, Any] = {"plain_s": plain.seconds}
    for name, options in SIDES.items():
        run = virtual.run(shape, fails=True, **options)
        restore_s = prices.restore_s(shape) if options["replicas"] else 0.0
        ratio = (run.seconds + restore_s) / plain.seconds
        predicted = predict_ratio(prices, shape, plain.seconds, name)
        found[name] = {
            "ratio": ratio,
            "predicted": predicted,
            "prediction_error": prediction_error(predicted, ratio),
            "restore_priced_s": restore_s,
            **_facts(run),
        }
    return found


def _respawn_cold(virtual: Virtual, prices: Prices, shape: Shape, plain_s: float) -> dict[str, Any]:
    run = virtual.run(shape, fails=True, **SIDES["respawn"])
    return {"ratio": (run.seconds + prices.restore_s(shape)) / plain_s, **_facts(run)}


def _facts(run: Run) -> dict[str, Any]:
    return {
        "seconds": run.seconds,
        **run.parts,
        "recomputed_tokens": run.recomputed,
        "restored_tokens": run.restored,
    }


def predict_ratio(prices: Prices, shape: Shape, plain_s: float, side: str) -> float:
    """By equations: what a loss adds is starting and loading, and doing the lost work again."""
    timing = prices.timing
    ready_s = timing.load_s if side == "spare" else timing.start_s + timing.read_s + timing.load_s
    again_s = {
        "paper_none": regenerate_s(timing, shape.prompt, shape.fail_at),
        "recompute": recompute_s(timing, shape.prompt + shape.fail_at),
    }
    return 1 + (ready_s + again_s.get(side, prices.restore_s(shape))) / plain_s


def regenerate_s(timing: NullTiming, prompt: int, tokens: int) -> float:
    """A prompt, and each known token in a step of its own, through all stages."""
    steps = sum(timing.decode_step_s([prompt + i]) for i in range(tokens))
    return STAGES * (timing.chunk_step_s(0, prompt) + steps)


def recompute_s(timing: NullTiming, tokens: int) -> float:
    """All known tokens as one extension of the log, stage after stage."""
    return STAGES * timing.chunk_step_s(0, tokens)


def measure_fig11(virtual: Virtual, shape: Shape) -> dict[str, Any]:
    """Time of all requests with three losses in the run: our replication, and none.

    Losses come at the quarters of the undisturbed time, as in the paper (600, 1200 and 1800 s).
    """
    plain = virtual.run(shape, replicas=1)
    losses_s = [plain.seconds * (i + 1) / (FIG11_LOSSES + 1) for i in range(FIG11_LOSSES)]
    none = virtual.run(shape, losses_s=losses_s, **SIDES["paper_none"])
    ours = virtual.run(shape, losses_s=losses_s, **SIDES["respawn"])
    return {
        "requests": shape.requests,
        "losses_s": losses_s,
        "plain_s": plain.seconds,
        "none": _facts(none),
        "ours": _facts(ours),
        "gain": none.seconds / ours.seconds,
    }


def judge_replication(timing: NullTiming, shape: Shape) -> dict[str, Any]:
    """What copies save after a loss at several tokens, as shares of the undisturbed latency.

    Against regenerating one by one (as exact mode must) and against one extension (fast mode).
    """
    plain_s = regenerate_s(timing, shape.prompt, shape.output)
    moments = sorted({1, 10, 50, 200, shape.fail_at, shape.output - 1})
    shares = {
        str(at): {
            "exact": regenerate_s(timing, shape.prompt, at) / plain_s,
            "fast": recompute_s(timing, shape.prompt + at) / plain_s,
        }
        for at in moments
    }
    many = range(1, shape.output)
    below = [at for at in many if regenerate_s(timing, shape.prompt, at) < LITTLE * plain_s]
    return {
        "saved_share_at_token": shares,
        "little_below_token": max(below, default=0),
        "fast_saves_at_most": max(each["fast"] for each in shares.values()),
    }


def _quick_size() -> Size:
    small = {"n_layers": 6, "hidden_size": 256, "n_heads": 8, "max_positions": 512}
    return Size(rows=4, output=192, rounds=2, stops=1, model=small)


def _notes(prices: Prices) -> list[str]:
    timing = asdict(prices.timing)
    return [
        "fig10: OPT-66B, 4 stages, 500 + 1000 tokens, a worker killed at token 700; ratios are "
        "latency with the loss over latency without (the paper: 1.91 without, 1.24 with copies)",
        f"weights of a stage: {timing['read_s']:.1f} s from the disk more than the "
        f"{timing['load_s']:.1f} s to the device; a spare has them in host memory",
        f"a worker starts in {timing['start_s']:.2f} s, as measured here from a fork server that "
        "has imported its libraries (the paper's standby processes had, too); respawn_cold "
        f"takes {prices.cold_start_s:g} s instead",
        "restore_priced_s: the copies' way back at the profile's network rate is added by "
        "calculation, virtual time has no network",
        "real: 2 stages and a spare that takes over; the machine's load is in all of it; what the "
        "simulator makes of real processes that are killed is bench fidelity's",
    ]


def _advice(little: dict[str, Any]) -> list[str]:
    return [
        f"replication buys little (under {LITTLE:.0%} of the latency) where fewer than "
        f"{little['little_below_token']} tokens are lost in exact mode",
        f"in fast mode, where one extension computes all known tokens, it saves at most "
        f"{little['fast_saves_at_most']:.1%} of a single request's latency",
    ]
