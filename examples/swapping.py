"""Twice the batch in the same device memory: the logs of microbatches that wait are on the host.

    python examples/swapping.py [--trace FILE]

Four stages under virtual time, each with a null device that takes the time of a large model's step
and holds two microbatches of the five. While one computes, the next one's log comes in and the last
one's new entries go out. Prints who was where, and when; the trace shows the same in Perfetto.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import dvrt
from dvrt.models.tiny import write_tiny
from dvrt.virtual import run_virtual

STAGES, PROMPT, OUTPUT = 4, 24, 24
WIDTH, WINDOW_MS = 72, 60.0
NULL: dict[str, Any] = {"device": "null", "null_step_ms": 4.0, "in_process": True, "replicas": 0}
LANES = ("compute", "copies in", "copies out")


async def serve(model: Path, batch_size: int, **options: Any) -> tuple[float, dvrt.Status]:
    """Seconds until eighty requests are answered, and the status after that."""
    launch = dvrt.launch(model, stages=STAGES, batch_size=batch_size, **NULL, **options)
    async with launch as engine:
        began = asyncio.get_running_loop().time()
        prompts = [[(i + j) % 250 for j in range(PROMPT)] for i in range(80)]
        wish = {"max_tokens": OUTPUT, "temperature": 0.0, "ignore_eos": True}
        await asyncio.gather(*(engine.complete(prompt, **wish) for prompt in prompts))
        return asyncio.get_running_loop().time() - began, engine.status()


def timeline(trace: Path) -> None:
    """Sixty milliseconds of the first stage: which microbatch is computed, comes in, goes out."""
    events = json.loads(trace.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [(names[e["pid"], e["tid"]], e) for e in events if e["ph"] == "X"]
    stage = "pipeline 0 stage 0"
    wanted = (stage, f"{stage} copies in", f"{stage} copies out")
    middle = max(e["ts"] for lane, e in spans if lane == stage) / 2
    for lane, label in zip(wanted, LANES, strict=True):
        row = ["."] * WIDTH
        for _, event in (each for each in spans if each[0] == lane):
            first = round((event["ts"] - middle) / 1000 / WINDOW_MS * WIDTH)
            last = round((event["ts"] + event["dur"] - middle) / 1000 / WINDOW_MS * WIDTH)
            for place in range(max(first, 0), min(max(last, first + 1), WIDTH)):
                row[place] = event["name"].split()[-1]
        print(f"  {label:>10} {''.join(row)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, help="write a Chrome trace to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny(Path(scratch) / "model", "gpt2", n_layers=STAGES, max_positions=64)
        trace = given.trace or Path(scratch) / "trace.json"
        plain_s, plain = run_virtual(serve(model, 4))
        swap = {"swap": True, "device_slots": 2, "swap_bandwidth": 1_000_000, "trace": str(trace)}
        swapped_s, swapped = run_virtual(serve(model, 8, **swap))
        before, after = plain.workers[0], swapped.workers[0]
        print(f"without: batch 4, {before.kv_bytes:>7} bytes on the device, {plain_s:.2f} s")
        print(f"swapped: batch 8, {after.kv_bytes:>7} bytes on the device, {swapped_s:.2f} s")
        print(f"         {after.swap['host_kv_bytes']:.0f} bytes on the host")
        print(f"\nstage 0, {WINDOW_MS:.0f} ms (the numbers are microbatches):")
        timeline(trace)


if __name__ == "__main__":
    main()
