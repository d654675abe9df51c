"""Figs. 10 and 11: a failure in a request, and three in a run, by ``bench recovery``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dvrt.bench.figures.figure import EMULATED, MEASURED, Figure, Findings, Row, number
from dvrt.bench.figures.reports import Known, bench_notes, circumstances, ratio_rows
from dvrt.bench.figures.store import bench_source

RECOVERY = bench_source("recovery")
SIDES = {
    "paper_none": "no copies, tokens one by one",
    "recompute": "no copies, one extension",
    "respawn": "copies, new worker",
    "spare": "copies, warm spare",
}
PARTS = {
    "detect_s": "detecting",
    "replace_s": "starting and loading",
    "restore_s": "restoring",
    "recompute_s": "computing again",
    "restore_priced_s": "the copies' way back",
}
FIG10: Mapping[str, Known] = {
    "fig10_paper_none": Known(
        what="latency with a loss over without: the paper's baseline",
        how=EMULATED,
        paper="1.91x",
        is_headline=True,
    ),
    "fig10_recompute": Known(what="the same: all known tokens in one extension", how=EMULATED),
    "fig10_respawn": Known(
        what="the same: copies, and a worker that is started and loaded",
        how=EMULATED,
        paper="1.24x",
        is_headline=True,
    ),
    "fig10_spare": Known(what="the same: copies, and a warm spare", how=EMULATED),
    "real_spare_latency": Known(
        what="real processes, a model on the CPU, a warm spare", how=MEASURED
    ),
    "detect_kill_ms": Known(what="a kill is detected after", how=MEASURED, unit="ms"),
    "detect_stop_ms": Known(
        what="a stop is detected after", how=MEASURED, unit="ms", paper="3 to 6 s"
    ),
    "resume_ms": Known(what="from detection to the next token", how=MEASURED, unit="ms"),
}
FIG11: Mapping[str, Known] = {
    "fig11_gain": Known(
        what="time of a run with three failures, without copies over with",
        how=EMULATED,
        paper="1.16x",
        is_headline=True,
    ),
}


def draw_one(figure: Any, findings: Findings) -> None:
    fig10 = findings["recovery"]["results"]["fig10"]
    axes = figure.subplots()
    plain_s = fig10["plain_s"]
    names = ["no loss", *SIDES.values()]
    left = [plain_s] * len(names)
    axes.barh(names, left, label="undisturbed")
    for part, label in PARTS.items():
        seconds = [0.0, *(fig10[side].get(part, 0.0) for side in SIDES)]
        if max(seconds) > 0:
            axes.barh(names, seconds, left=left, label=label)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    for ratio, style in ((1.91, ":"), (1.24, "--")):
        axes.axvline(ratio * plain_s, color="black", linestyle=style, label=f"{ratio}x, the paper")
    axes.invert_yaxis()
    axes.set(xlabel="seconds from the request to its last token")
    figure.legend(loc="outside upper center", fontsize=8, ncols=3)


def rows_one(findings: Findings) -> Iterator[Row]:
    yield from ratio_rows(findings["recovery"], FIG10)
    cold = findings["recovery"]["results"]["fig10"].get("respawn_cold")
    if cold:
        yield Row(
            what="copies, and a worker whose process starts from nothing",
            ours=f"{cold['ratio']:.2f}x",
            how=EMULATED,
        )


def notes_one(findings: Findings) -> Iterator[str]:
    yield (
        "Rows that are emulated: the real runtime, four stages on null devices under virtual time, "
        "OPT-66B on one A100-80 a stage by a derived profile. Measured rows: real processes on the "
        "CPU, killed and stopped. The paper's own ratios hold about 0.24 of detection and restart "
        "on both sides."
    )
    yield from bench_notes(findings["recovery"])


def draw_three(figure: Any, findings: Findings) -> None:
    fig11 = findings["recovery"]["results"]["fig11"]
    axes = figure.subplots()
    names = ["no loss", "no copies", "copies"]
    axes.barh(names, [fig11["plain_s"], fig11["none"]["seconds"], fig11["ours"]["seconds"]], 0.6)
    for at, moment in enumerate(fig11["losses_s"]):
        axes.axvline(moment, color="black", linestyle=":", label=None if at else "a worker dies")
    axes.invert_yaxis()
    axes.set(xlabel=f"seconds for {fig11['requests']} requests")
    axes.legend(fontsize=8)


def rows_three(findings: Findings) -> Iterator[Row]:
    yield from ratio_rows(findings["recovery"], FIG11)
    fig11 = findings["recovery"]["results"]["fig11"]
    seconds = (fig11["plain_s"], fig11["none"]["seconds"], fig11["ours"]["seconds"])
    yield Row(
        what=f"{fig11['requests']} requests: without a loss, without copies, with copies",
        ours=", ".join(f"{number(each)} s" for each in seconds),
        how=EMULATED,
    )


def notes_three(findings: Findings) -> Iterator[str]:
    losses_s = findings["recovery"]["results"]["fig11"]["losses_s"]
    losses = ", ".join(number(each) for each in losses_s)
    yield (
        f"As Fig. 10, four microbatches of one row at a time; workers die at {losses} s, the "
        "quarters of the undisturbed run (the paper: 600, 1200 and 1800 s)."
    )
    yield circumstances(findings["recovery"])


ONE = Figure(
    name="fig10",
    title="Fig. 10: a failure in the middle of OPT-66B's answer",
    sources=(RECOVERY,),
    draw=draw_one,
    rows=rows_one,
    notes=notes_one,
    size=(9.0, 3.0),
)
THREE = Figure(
    name="fig11",
    title="Fig. 11: three failures in a run",
    sources=(RECOVERY,),
    draw=draw_three,
    rows=rows_three,
    notes=notes_three,
    size=(9.0, 2.0),
)
