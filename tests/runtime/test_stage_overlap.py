"""Prompts leave layer by layer: what is computed is on its way while the next layers compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.models.tiny import write_tiny
from dvrt.protocol.messages import Arrived
from dvrt.stages.stage import StageActor
from tests.runtime.stage_crew import Works, works

LAYERS, CHUNK = 8, 64


@pytest.fixture(scope="module", params=["gpt2", "llama", "bloom", "opt"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers that take some milliseconds each."""
    folder = tmp_path_factory.mktemp("overlap") / request.param
    shape = {"n_layers": LAYERS, "hidden_size": 512, "n_heads": 8}
    return write_tiny(folder, request.param, vocab_size=97, max_positions=256, **shape)


def stage_actor(shop: Works, worker: str, name: str) -> StageActor:
    (node,) = shop.workers[worker]._nodes
    actor = node._cells[name].actor
    assert isinstance(actor, StageActor)
    return actor


async def test_a_layer_is_on_the_wire_before_the_next_but_one_has_computed(
    checkpoint: Path,
) -> None:
    async with works(
        scheme="tcp", n_layers=LAYERS, model=checkpoint, max_context=CHUNK, chunk_tokens=CHUNK
    ) as shop:
        prompts, tokens = await shop.line(0, 1), await shop.line(1, 3)
        await shop.connect(prompts, [tokens])
        await shop.connect(tokens)
        actor = stage_actor(shop, "w0-0", "p0-s0")
        held = 0
        for turn in range(5):
            sightings = actor._shipper.sightings
            sightings.clear()
            prompt = [3 + turn] * 8
            epoch, _ = await shop.prompt(prompts, turn, turn, prompt, to=1, target=turn)
            for stage in range(3):
                name = (stage, epoch)
                await shop.desk.wait_for(Arrived, lambda e, n=name: (e.stage, e.epoch) == n)
            computed = {layer: at for what, layer, at in sightings if what == "packed"}
            sent = {layer: at for what, layer, at in sightings if what == "sent"}
            assert sorted(computed) == sorted(sent) == list(range(LAYERS))
            held += all(sent[layer] < computed[layer + 2] for layer in range(LAYERS - 2))
        assert held >= 3, "in most prompts; a busy machine may hold the loop up once"
