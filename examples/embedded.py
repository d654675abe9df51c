"""A pipeline inside somebody else's asyncio program, beside work of its own.

The program keeps a clock ticking while four readers ask for stories at once; one of them leaves
early, which frees its row for the others.

    python examples/embedded.py [MODEL_DIRECTORY]
"""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise
from pathlib import Path

import dvrt

STORYTELLER = Path(__file__).parent / "storyteller"


async def tick(beats: list[float]) -> None:
    """The program's own work: it must never be held up by the model."""
    loop = asyncio.get_running_loop()
    while True:
        beats.append(loop.time())
        await asyncio.sleep(0.01)


async def read(engine: dvrt.Engine, name: str, opening: str) -> str:
    done = await engine.complete(opening, max_tokens=60, temperature=0.7, seed=len(name))
    return f"{name} read: {opening}{done.text}"


async def leave_early(engine: dvrt.Engine, name: str) -> str:
    tokens = engine.generate("Once upon a time", max_tokens=200, temperature=0.0)
    heard = ""
    async for token in tokens:
        heard += token.text
        if token.index == 4:
            break
    await tokens.aclose()
    return f"{name} left after: {heard!r}"


async def main(model: str) -> None:
    beats: list[float] = []
    async with dvrt.launch(model, stages=2) as engine, asyncio.TaskGroup() as group:
        clock = group.create_task(tick(beats))
        readers = [
            group.create_task(read(engine, "Ann", "Once upon a time")),
            group.create_task(read(engine, "Bo", "One morning")),
            group.create_task(read(engine, "Cy", "Long ago")),
            group.create_task(leave_early(engine, "Di")),
        ]
        for reader in readers:
            print(await reader)
        clock.cancel()
    gaps = [later - earlier for earlier, later in pairwise(beats)]
    print(f"the clock beat {len(beats)} times, never more than {max(gaps) * 1000:.0f} ms apart")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else str(STORYTELLER)))
