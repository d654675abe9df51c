"""Fig. 4: one request of GPT2-1.5B, half of whose tokens are there when a worker dies."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dvrt.bench.figures.figure import EMULATED, Figure, Findings, Row, Source, number, times
from dvrt.bench.recovery_virtual import Prices, Shape, Virtual
from dvrt.planner.profile import open_profile

PROFILE = "gpt2-1.5b-a100-80"
SHAPE = Shape(prompt=500, output=500, fail_at=250)
SIDES: Mapping[str, Mapping[str, Any]] = {
    "no copies": {"replicas": 0},
    "copies": {"replicas": 1},
    "copies and a spare": {"replicas": 1, "spares": 1},
}
PAPER = 1.89


def make(_quick: bool) -> Mapping[str, Any]:
    """Seconds of the request without a loss, and with one in each of SIDES.

    A worker's start takes nothing here, so that what is done again shows; loading is priced.
    """
    prices = Prices.of(open_profile(PROFILE), start_s=0.0)
    with tempfile.TemporaryDirectory() as folder:
        virtual = Virtual(Path(folder), prices)
        found: dict[str, Any] = {"plain_s": virtual.run(SHAPE, replicas=1).seconds}
        for name, options in SIDES.items():
            run = virtual.run(SHAPE, fails=True, **options)
            restore_s = prices.restore_s(SHAPE) if options["replicas"] else 0.0
            found[name] = {
                "seconds": run.seconds + restore_s,
                "replace_s": run.parts["replace_s"],
                "redone_s": run.parts["recompute_s"],
                "recomputed_tokens": run.recomputed,
            }
    return found


def draw(figure: Any, findings: Findings) -> None:
    data = findings["toy_failure"]
    axes = figure.subplots()
    names = ["no loss", *SIDES]
    plain_s = data["plain_s"]
    parts = {
        "undisturbed": [plain_s] * len(names),
        "starting and loading": [0.0, *(data[name]["replace_s"] for name in SIDES)],
        "done again": [0.0, *(data[name]["redone_s"] for name in SIDES)],
    }
    left = [0.0] * len(names)
    for label, seconds in parts.items():
        axes.barh(names, seconds, left=left, label=label)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.axvline(PAPER * plain_s, color="black", linestyle=":", label=f"{PAPER}x, the paper")
    axes.invert_yaxis()
    axes.set(xlabel="seconds from the request to its last token")
    figure.legend(loc="outside upper center", fontsize=8, ncols=4)


def rows(findings: Findings) -> Iterator[Row]:
    data = findings["toy_failure"]
    plain_s = data["plain_s"]
    for name in SIDES:
        found = data[name]
        yield Row(
            what=f"latency with a loss at token {SHAPE.fail_at} over none: {name}",
            paper=f"{PAPER}x" if name == "no copies" else "",
            ours=times(found["seconds"] / plain_s),
            how=EMULATED,
            is_headline=name == "no copies",
        )


def notes(findings: Findings) -> Iterator[str]:
    data = findings["toy_failure"]
    found, plain_s = data["no copies"], data["plain_s"]
    missing_s = PAPER * plain_s - found["seconds"]
    yield (
        f"The real runtime on null devices under virtual time: {SHAPE.prompt} + {SHAPE.output} "
        f"tokens, four stages, A100-80 times that are derived. The request takes "
        f"{number(plain_s)} s. {found['recomputed_tokens']} positions are computed again in "
        f"{number(found['redone_s'])} s, {found['redone_s'] / plain_s:.0%} of the undisturbed "
        f"latency; reading and loading the stage's weights takes {number(found['replace_s'])} s."
    )
    yield (
        f"The start of a process is left out: here it would have to take {number(missing_s)} s "
        "for the paper's ratio, which depends on how long a restart is beside a short request. "
        "Copies on their way back are priced by the profile's network."
    )


FIGURE = Figure(
    name="fig04",
    title="Fig. 4: a failure in the middle of a request",
    sources=(Source(name="toy_failure", make=make, slow=True),),
    draw=draw,
    rows=rows,
    notes=notes,
    size=(9.0, 2.4),
)
