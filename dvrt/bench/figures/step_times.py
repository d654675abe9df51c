"""Fig. 2: what a prompt and a token cost, by the derived profiles that come with the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dvrt.bench.figures.figure import DERIVED, Figure, Findings, Row, Source, number
from dvrt.planner.profile import Profile, open_profile

MODELS = {
    "OPT-13B": "opt-13b-a100-80",
    "OPT-66B": "opt-66b-a100-80",
    "BLOOM-176B": "bloom-176b-a100-80",
}
BATCHES = (1, 2, 4, 8)
PROMPTS = (250, 500, 1000, 1500, 2000)
BATCH, PROMPT = 8, 1000


def make(_quick: bool) -> Mapping[str, Any]:
    """Seconds of all layers, for each model, batch size and prompt length."""
    return {name: _times(open_profile(profile)) for name, profile in MODELS.items()}


def _times(profile: Profile) -> dict[str, Any]:
    layers = profile.model.layers
    cells = [
        {
            "batch": batch,
            "prompt": prompt,
            "prompt_s": profile.stage_prompt_s(layers, batch, prompt),
            "token_s": profile.stage_token_s(layers, batch, prompt),
        }
        for batch in BATCHES
        for prompt in PROMPTS
    ]
    return {"profile": profile.name, "cells": cells}


def cell(found: Mapping[str, Any], batch: int, prompt: int) -> tuple[float, float]:
    """Prompt and token seconds of one batch size and prompt length."""
    wanted = (batch, prompt)
    each = next(each for each in found["cells"] if (each["batch"], each["prompt"]) == wanted)
    return each["prompt_s"], each["token_s"]


def draw(figure: Any, findings: Findings) -> None:
    data = findings["step_times"]
    bars, lines = figure.subplots(1, 2)
    for offset, phase in enumerate(("prompt", "token")):
        seconds = [cell(found, BATCH, PROMPT)[offset] for found in data.values()]
        places = [at + 0.38 * (offset - 0.5) for at in range(len(data))]
        bars.bar(places, [1000 * each for each in seconds], 0.38, label=phase)
    bars.set_xticks(range(len(data)), list(data))
    bars.set(yscale="log", ylabel="ms", title=f"batch {BATCH}, prompt {PROMPT}")
    bars.legend()
    for name, found in data.items():
        for batch, style in ((1, ":"), (BATCH, "-")):
            pairs = [cell(found, batch, prompt) for prompt in PROMPTS]
            ratios = [prompt_s / token_s for prompt_s, token_s in pairs]
            lines.plot(PROMPTS, ratios, style, label=f"{name}, batch {batch}")
    lines.set(xlabel="prompt tokens", ylabel="prompt over token", yscale="log")
    lines.legend(fontsize=7)


def rows(findings: Findings) -> Iterator[Row]:
    data = findings["step_times"]
    ratios = [
        each["prompt_s"] / each["token_s"] for found in data.values() for each in found["cells"]
    ]
    yield Row(
        what="prompt over token, least and most",
        paper="1.4x to 106x",
        ours=f"{min(ratios):.1f}x to {max(ratios):.0f}x",
        how=DERIVED,
        is_headline=True,
    )
    for name, found in data.items():
        prompt_s, token_s = cell(found, BATCH, PROMPT)
        yield Row(
            what=f"{name}, batch {BATCH}, prompt {PROMPT}: prompt, token, ratio",
            ours=f"{number(1000 * prompt_s)} ms, {number(1000 * token_s)} ms, "
            f"{number(prompt_s / token_s)}x",
            how=DERIVED,
        )


def notes(_findings: Findings) -> Iterator[str]:
    yield (
        "No GPU was used. Prompts take half of an A100-80's peak arithmetic, tokens 70 % of its "
        "memory's bandwidth, whichever is longer; one GPU computes all layers, wherever they would "
        "fit. All ratios follow from these two shares."
    )
    yield (
        f"Least and most are over batches of {BATCHES[0]} to {BATCHES[-1]} and prompts of "
        f"{PROMPTS[0]} to {PROMPTS[-1]} tokens, as in the paper. A roofline knows neither launches "
        "nor how well a kernel does, so the two ends are no more than of the paper's order."
    )


FIGURE = Figure(
    name="fig02",
    title="Fig. 2: prompt and token times",
    sources=(Source(name="step_times", make=make),),
    draw=draw,
    rows=rows,
    notes=notes,
)
