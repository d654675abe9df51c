"""A program for a network of its own (``unshare -rn``), whose routes swallow what passes between
two workers, while the controller hears both. Prints what came of it as JSON.

The argument is how many seconds it lasts; 0 is for ever.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import dvrt
from dvrt.models.tiny import write_tiny

VICTIM = "worker-1"
WISH = {"max_tokens": 120, "temperature": 0.0, "ignore_eos": True}


def ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True)


async def swallow(port: str, seconds: float) -> None:
    """Whoever dials the worker, and it answers, is not heard; its own link to the controller is."""
    for end in ("sport", "dport"):
        ip("rule", "add", "pref", 5, "ipproto", "tcp", end, port, "blackhole")
    if seconds:
        await asyncio.sleep(seconds)
        for _ in range(2):
            ip("rule", "del", "pref", 5)


async def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny(
            Path(scratch) / "null", "gpt2", n_layers=3, hidden_size=16, max_positions=512
        )
        launched = dvrt.launch(model, stages=3, device="null", null_step_ms=5.0, batch_size=2)
        async with launched as engine:
            right = await engine.complete([1, 2, 3], **WISH)
            asking = asyncio.create_task(engine.complete([1, 2, 3], **WISH))
            await asyncio.sleep(0.3)
            victim = engine._controller._overseer.roster.get(VICTIM)
            assert victim is not None
            await swallow(victim.host.node_address.rpartition(":")[2], seconds)
            answer = await asyncio.wait_for(asking, 60)
            lost = [
                (each.subject, each.reason)
                for each in engine.events()
                if each.state == "lost" and each.subject.startswith("worker")
            ]
    print(json.dumps({"is_right": answer.token_ids == right.token_ids, "lost": lost}))


if __name__ == "__main__":
    ip("link", "set", "lo", "up")
    ip("rule", "add", "pref", 10, "lookup", "local")
    ip("rule", "del", "pref", 0)
    asyncio.run(main(float(sys.argv[1])))
