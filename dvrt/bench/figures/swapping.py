"""Fig. 9: twice the batch with swapping over none, by ``bench swap``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dvrt.bench.figures.figure import EMULATED, MEASURED, Figure, Findings, Row, times
from dvrt.bench.figures.reports import Known, bench_notes, ratio_rows
from dvrt.bench.figures.store import bench_source

MODELS = {"opt66b": "OPT-66B, 4 stages", "bloom176b": "BLOOM-176B, 7 stages"}
KNOWN: Mapping[str, Known] = {
    "opt66b_swap_gain": Known(
        what="OPT-66B, 4 stages: tokens a second, 2B with swapping over B",
        how=EMULATED,
        paper="up to 1.8x (over all models)",
        is_headline=True,
    ),
    "bloom176b_swap_gain": Known(
        what="BLOOM-176B, 7 stages: the same",
        how=EMULATED,
        paper="up to 1.8x (over all models)",
        is_headline=True,
    ),
    "opt66b_vs_bound": Known(what="OPT-66B: of what Appendix G allows", how=EMULATED),
    "bloom176b_vs_bound": Known(what="BLOOM-176B: of what Appendix G allows", how=EMULATED),
    "cpu_model_swap_gain": Known(what="a real model on the CPU, its link limited", how=MEASURED),
}


def draw(figure: Any, findings: Findings) -> None:
    results = findings["swap"]["results"]
    gains, memory = figure.subplots(1, 2)
    names = [*MODELS.values(), "CPU model"]
    cpu = results["cpu_model"]
    ours = [results[model]["gain"] for model in MODELS] + [cpu["gain"]["median"]]
    allowed = [results[model]["bound"] for model in MODELS] + [cpu["gain_predicted"]["median"]]
    for at, (label, values) in enumerate((("ours", ours), ("allowed or predicted", allowed))):
        gains.bar([place + 0.38 * (at - 0.5) for place in range(3)], values, 0.38, label=label)
    gains.axhline(1.8, color="black", linestyle=":", label="1.8, the paper's best")
    gains.set_xticks(range(3), names, fontsize=8)
    gains.set(ylabel="2B with swapping over B", ylim=(0, 3))
    gains.legend(fontsize=8)
    kinds = ("plain_device", "swapped_device", "swapped_host")
    for at, kind in enumerate(kinds):
        gb = [results[model][f"{kind}_kv_bytes"] / 1e9 for model in MODELS]
        places = [place + 0.27 * (at - 1) for place in range(len(MODELS))]
        memory.bar(places, gb, 0.27, label=kind.replace("_", ", "))
    memory.set_xticks(range(len(MODELS)), list(MODELS.values()), fontsize=8)
    memory.set(ylabel="GB of KV a stage")
    memory.legend(fontsize=8)


def rows(findings: Findings) -> Iterator[Row]:
    yield from ratio_rows(findings["swap"], KNOWN)
    for model, name in MODELS.items():
        long = findings["swap"]["results"][model]["long_contexts"]
        yield Row(
            what=f"{name}: B = {long['batch']}, contexts from 1000 on",
            paper="loses",
            ours=f"{times(long['gain_predicted'])}, {'refused' if long['refused'] else 'taken'}",
            how="by Appendix G",
        )


def notes(findings: Findings) -> Iterator[str]:
    yield (
        "The real runtime with null devices under virtual time: batches of 4, prompts of 64, "
        "outputs of 128, derived steps and a link of 25 GB/s a GPU. The paper's lengths for this "
        "figure are not known. Contexts are short on purpose: longer ones take longer to copy than "
        "a step lasts, as the last rows say."
    )
    yield from bench_notes(findings["swap"])


FIGURE = Figure(
    name="fig09",
    title="Fig. 9: swapping",
    sources=(bench_source("swap"),),
    draw=draw,
    rows=rows,
    notes=notes,
)
