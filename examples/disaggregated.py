"""Prompts and tokens on workers of their own, and a timeline of where each request was.

Eight requests with prompts of different lengths; while they run, the split is changed from one
prompt and two token stages to two and one. Then each request's time is drawn by place.

    python examples/disaggregated.py [MODEL_DIRECTORY]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import dvrt

STORYTELLER = Path(__file__).parent / "storyteller"
OPENING = "Once upon a time there was a little girl who lived in a small house by the sea. "
LETTERS = {"queue": ".", "slot": ":", "prompt": "P", "transfer": ">", "token": "t"}
WIDTH = 60


async def ask(engine: dvrt.Engine, number: int) -> dvrt.Completion:
    await asyncio.sleep(0.02 * number)
    prompt = OPENING * (1 + number % 4)
    return await engine.complete(prompt, max_tokens=40, temperature=0.7, seed=number)


def draw(done: dvrt.Completion, longest_s: float) -> str:
    """The request's life as letters, each an equal time."""
    bar = ""
    for place, letter in LETTERS.items():
        seconds = done.timings.places.get(place, 0.0)
        bar += letter * max(round(WIDTH * seconds / longest_s), seconds > 0)
    return bar


async def main(model: str) -> None:
    split = {"prompt_stages": 1, "token_stages": 2}
    async with dvrt.launch(model, batch_size=4, **split) as engine, asyncio.TaskGroup() as group:
        for worker in engine.status().workers:
            print(f"{worker.name}: {worker.role} stage {worker.stage}, layers {worker.layers}")
        tasks = [group.create_task(ask(engine, number)) for number in range(8)]
        await asyncio.sleep(0.1)
        await engine.rebalance(prompt_stages=2, token_stages=1)
        answers = [await task for task in tasks]
        roles = [f"{worker.name} {worker.role}" for worker in engine.status().workers]
        print(f"now {', '.join(roles)}")

    longest_s = max(done.timings.total_s for done in answers)
    print(f"\n{', '.join(f'{letter} {place}' for place, letter in LETTERS.items())}")
    for number, done in enumerate(answers):
        print(f"{number} {done.n_prompt_tokens:3d} tokens  {draw(done, longest_s)}")
    print(f"\n{WIDTH} letters are {longest_s * 1e3:.0f} ms; every request ended in full:")
    print(f"{len(answers)} answers, {sum(len(done.token_ids) for done in answers)} tokens")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else str(STORYTELLER)))
