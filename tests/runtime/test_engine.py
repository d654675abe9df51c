"""What a caller of the engine sees: streams, stops, cancels, deadlines, refusals, the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.models.tiny import write_tiny

GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(
        tmp_path_factory.mktemp("engine") / "bytes",
        "llama",
        n_layers=3,
        tokenizer=True,
        generation={"eos_token_id": 256, "temperature": 0.5},
    )


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("engine") / "mute", "gpt2", n_layers=3)


@asynccontextmanager
async def running(model: Path, **options: Any) -> AsyncIterator[dvrt.Engine]:
    options = {"in_process": True, "stages": 2, "batch_size": 2, "max_context": 128} | options
    async with dvrt.launch(model, **options) as engine:
        yield engine


async def test_streamed_pieces_join_to_the_completion(model: Path) -> None:
    async with running(model) as engine:
        wish = {"max_tokens": 30, "seed": 3, "temperature": 1.0, "ignore_eos": True}
        tokens = [token async for token in engine.generate("Once", **wish)]
        done = await engine.complete("Once", **wish)
    assert [token.index for token in tokens] == list(range(30))
    assert tuple(token.id for token in tokens) == done.token_ids
    assert "".join(token.text for token in tokens) == done.text
    assert done.finish_reason is dvrt.FinishReason.LENGTH
    assert done.n_prompt_tokens == 4
    assert 0 <= done.timings.queued_s <= done.timings.first_token_s <= done.timings.total_s


async def test_every_loop_kind_serves(model: Path, loop_kind: str) -> None:
    async with running(model) as engine:
        done = await engine.complete([1, 2], max_tokens=3, ignore_eos=True, **GREEDY)
    assert len(done.token_ids) == 3


async def test_stop_ids_and_stop_strings_end_a_sample(model: Path) -> None:
    async with running(model) as engine:
        wish = {"max_tokens": 40, "seed": 1, "temperature": 1.0, "ignore_eos": True}
        free = await engine.complete([70], **wish)
        at = free.token_ids[10]
        stopped = await engine.complete([70], stop_ids=[at], **wish)
        assert stopped.finish_reason is dvrt.FinishReason.STOP
        assert stopped.token_ids == free.token_ids[: free.token_ids.index(at) + 1]
        middle = free.text[5:9]
        cut = await engine.complete([70], stop=[middle, "never there"], **wish)
        assert cut.finish_reason is dvrt.FinishReason.STOP
        assert cut.text == free.text[: free.text.index(middle)]
        assert engine.status().n_running == 0


async def test_the_models_end_comes_from_generation_config(model: Path) -> None:
    async with running(model) as engine:
        for seed in range(40):
            done = await engine.complete([1], max_tokens=60, seed=seed, temperature=3.0)
            if done.finish_reason is dvrt.FinishReason.EOS:
                assert done.token_ids[-1] == 256
                return
    pytest.fail("no sample ever drew the end token")


async def test_leaving_a_stream_frees_its_row(model: Path) -> None:
    async with running(model, stages=1, microbatches=1, batch_size=1) as engine:
        stream = engine.generate([1], max_tokens=100, ignore_eos=True, **GREEDY)
        await anext(stream)
        waiting = asyncio.create_task(engine.complete([2], max_tokens=2, ignore_eos=True))
        await asyncio.sleep(0)
        assert engine.status().n_queued == 1
        await stream.aclose()
        assert len((await waiting).token_ids) == 2
        task = asyncio.create_task(engine.complete([1], max_tokens=100, ignore_eos=True))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.status().n_running == 0


async def test_a_deadline_ends_a_request_with_what_it_has(model: Path) -> None:
    async with running(model) as engine:
        done = await engine.complete(
            [1], max_tokens=120, deadline_s=0.02, ignore_eos=True, **GREEDY
        )
    assert done.finish_reason is dvrt.FinishReason.DEADLINE
    assert len(done.token_ids) < 120


@pytest.mark.parametrize(
    ("prompt", "options", "text"),
    [
        ([1] * 200, {}, "context is 128 tokens; the prompt has 200"),
        ([1] * 100, {"max_tokens": 29}, "the prompt has 100 and 29 more"),
        ([], {}, "prompt is empty"),
        ([1, 999], {}, r"token id 999 is outside the vocabulary \[0, 307\)"),
        ([1, -1], {}, "token id -1"),
        ([1, "x"], {}, "'x' is not a token id"),
        ([1], {"temperature": float("nan")}, "temperature is nan"),
        ([1], {"top_p": -1.0}, "top_p is -1.0"),
        ([1], {"n": 0}, "n is 0"),
        ([1], {"stop": ""}, "a stop string is empty"),
    ],
)
async def test_what_cannot_be_is_refused_with_the_numbers(
    model: Path, prompt: list[int], options: dict[str, Any], text: str
) -> None:
    async with running(model) as engine:
        with pytest.raises(dvrt.RequestRejected, match=text):
            await engine.complete(prompt, **options)


async def test_an_unknown_option_is_named(model: Path) -> None:
    async with running(model) as engine:
        with pytest.raises(dvrt.ConfigError, match="unknown option 'temprature'"):
            await engine.complete([1], temprature=1.0)


async def test_a_full_queue_says_when_to_come_back(model: Path) -> None:
    async with running(model, stages=1, microbatches=1, batch_size=1, max_queue=2) as engine:
        streams = [engine.generate([1], max_tokens=50, ignore_eos=True) for _ in range(3)]
        for stream in streams[:1]:
            await anext(stream)
        waiting = [asyncio.create_task(anext(stream)) for stream in streams[1:]]
        await asyncio.sleep(0)
        with pytest.raises(dvrt.Overloaded, match="2 requests wait") as refused:
            await engine.complete([1], max_tokens=1)
        assert refused.value.retry_after_s >= 1.0
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def test_without_a_tokenizer_token_ids_are_served_all_the_same(mute: Path) -> None:
    async with running(mute) as engine:
        assert engine.text is None
        assert not engine.model.has_tokenizer
        done = await engine.complete([1, 2, 3], max_tokens=4, **GREEDY)
        assert (len(done.token_ids), done.text) == (4, "")
        with pytest.raises(dvrt.RequestRejected, match="no tokenizer; send token ids"):
            await engine.complete("hello")
        with pytest.raises(dvrt.RequestRejected, match="stop strings need a tokenizer"):
            await engine.complete([1], stop="x")


async def test_closing_the_cluster_ends_what_runs_with_an_answer(model: Path) -> None:
    async with running(model) as engine:
        task = asyncio.create_task(engine.complete([1], max_tokens=120, ignore_eos=True))
        await asyncio.sleep(0.01)
    with pytest.raises(dvrt.Unavailable, match="stopped"):
        await task
    with pytest.raises(dvrt.Unavailable, match="stopped"):
        await engine.complete([1])
    assert not engine.is_healthy()


async def test_draining_lets_the_running_ones_end(model: Path) -> None:
    async with running(model) as engine:
        task = asyncio.create_task(engine.complete([1], max_tokens=20, ignore_eos=True))
        await asyncio.sleep(0.001)
        draining = asyncio.create_task(engine.drain(30.0))
        await asyncio.sleep(0)
        with pytest.raises(dvrt.Unavailable, match="draining"):
            await engine.complete([1])
        await draining
        assert len((await task).token_ids) == 20


async def test_draining_has_a_limit(model: Path) -> None:
    async with running(model) as engine:
        task = asyncio.create_task(engine.complete([1], max_tokens=120, ignore_eos=True))
        await asyncio.sleep(0.001)
        await engine.drain(0.01)
        assert (await task).finish_reason is dvrt.FinishReason.CANCELLED


async def test_the_status_names_workers_and_layers(model: Path) -> None:
    seen: list[tuple[str, str]] = []
    options = {"on_progress": lambda worker: seen.append((worker.name, worker.state))}
    async with running(model, **options) as engine:
        await engine.complete([1], max_tokens=2, ignore_eos=True)
        status = engine.status()
    assert status.state == "serving"
    assert [(w.stage, w.layers, w.state) for w in status.workers] == [
        (0, (0, 2), "ready"),
        (1, (2, 3), "ready"),
    ]
    assert all(w.steps >= 2 and w.busy_s > 0 and w.weights_bytes > 0 for w in status.workers)
    assert {state for _, state in seen} >= {"loading", "loaded", "ready"}


async def test_metrics_count_what_happened(model: Path) -> None:
    async with running(model) as engine:
        await engine.complete([1, 2, 3], max_tokens=4, ignore_eos=True)
        with pytest.raises(dvrt.RequestRejected):
            await engine.complete([])
        text = engine.metrics.render().decode()
        assert engine.metrics.value("dvrt_tokens_total", kind="generated") == 4.0
        assert engine.metrics.value("dvrt_tokens_total", kind="prompt") == 3.0
    assert "dvrt_step_seconds" in text
    assert "dvrt_queue_depth 0.0" in text
