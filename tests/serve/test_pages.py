"""What operators and clients ask beside generating."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from tests.serve.client import MODEL, ask, get, post, served, wire
from tests.serve.fake_engine import FakeEngine


async def test_models():
    async with served(FakeEngine(max_context=99)) as (_, client):
        models = [model async for model in client.models.list()]
        model = await client.models.retrieve(MODEL)
    assert [one.id for one in models] == [MODEL]
    assert model == models[0]
    assert (model.object, model.owned_by) == ("model", "dvrt")
    assert model.model_extra == {"max_model_len": 99}


async def test_health(loop_kind):
    engine = FakeEngine()
    async with served(engine) as (server, _), wire(server) as connection:
        for healthy, status, word in ((True, 200, "ok"), (False, 503, "unhealthy")):
            engine.healthy = healthy
            await connection.send(get("/health"))
            found, _, body = await connection.answer()
            assert (found, body) == (status, {"status": word, "state": "serving"})


async def test_status():
    async with served(FakeEngine()) as (server, _):
        status, _, body = await ask(server, get("/status"))
    assert status == 200
    assert body["model"] == MODEL
    assert body["workers"][0]["name"] == "w0"
    assert body["workers"][0]["layers"] == [0, 4]


async def test_metrics():
    engine = FakeEngine()
    async with served(engine) as (server, client):
        await client.completions.create(model=MODEL, prompt="a", max_tokens=2)
        await ask(server, post("/v1/completions", {}))
        await ask(server, get("/%00" + "x" * 50))
        status, headers, body = await ask(server, get("/metrics"))
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "dvrt_http_responses_total"
    }
    assert samples == {
        ("/v1/completions", "200"): 1,
        ("/v1/completions", "400"): 1,
        ("other", "404"): 1,
    }


async def test_request_ids():
    async with served(FakeEngine()) as (server, client):
        for path in ("/health", "/nowhere"):
            _, headers, _ = await ask(server, get(path, headers="x-request-id: my-id.7\r\n"))
            assert headers["x-request-id"] == "my-id.7"
            _, first, _ = await ask(server, get(path))
            _, second, _ = await ask(server, get(path, headers=f"x-request-id: {'y' * 129}\r\n"))
            made = {first["x-request-id"], second["x-request-id"]}
            assert len(made) == 2
            assert all(one.startswith("req-") for one in made)
        done = await client.completions.with_raw_response.create(model=MODEL, prompt="a")
        assert done.headers["x-request-id"].startswith("req-")


async def test_one_request_id_for_many_requests():
    """Clients may send what they like, also the same id twice at once."""
    engine = FakeEngine()
    engine.go.clear()
    async with served(engine) as (_, client):
        calls = [
            asyncio.create_task(
                client.completions.create(
                    model=MODEL, prompt="a", extra_headers={"x-request-id": "same"}
                )
            )
            for _ in range(2)
        ]
        await engine.wait_open(2)
        engine.go.set()
        done = await asyncio.gather(*calls)
    assert len({one.id for one in done}) == 2
