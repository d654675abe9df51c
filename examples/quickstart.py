"""The shortest way in: launch a pipeline of three workers, stream a story, look at the workers.

python examples/quickstart.py [MODEL_DIRECTORY]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import dvrt

STORYTELLER = Path(__file__).parent / "storyteller"


async def main(model: str) -> None:
    async with dvrt.launch(model, stages=3) as engine:
        for worker in engine.status().workers:
            print(f"{worker.name}: process {worker.pid}, layers {worker.layers}")

        async for token in engine.generate("Once upon a time", max_tokens=120, temperature=0.0):
            print(token.text, end="", flush=True)
        print()

        done = await engine.complete([1, 2, 3], max_tokens=8, ignore_eos=True)
        print(f"{len(done.token_ids)} tokens after [1, 2, 3]: {done.token_ids}")
        print(f"finished by {done.finish_reason.value} in {done.timings.total_s:.2f} s")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else str(STORYTELLER)))
