"""Real worker processes: what people see when one dies, and that nothing is ever left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import dvrt
from dvrt.models.tiny import write_tiny

HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("processes") / "tiny", "llama", n_layers=3)


def run_briefly(main: object) -> None:
    asyncio.run(asyncio.wait_for(main, 60))  # type: ignore[arg-type]


def test_a_killed_worker_that_is_not_replaced_is_named_and_its_requests_answered(
    model: Path,
) -> None:
    async def main() -> None:
        options = {"device": "null", "null_step_ms": 2, "max_deaths": 0}
        async with dvrt.launch(model, stages=2, **options) as engine:
            task = asyncio.create_task(engine.complete([1], max_tokens=400, temperature=0.0))
            stream = engine.generate([2], max_tokens=400, temperature=0.0)
            await anext(stream)
            victim = engine.status().workers[1]
            os.kill(victim.pid, signal.SIGKILL)
            with pytest.raises(dvrt.StageFailed, match="worker-1"):
                await task
            with pytest.raises(dvrt.StageFailed, match="worker-1"):
                async for _ in stream:
                    pass
            assert not engine.is_healthy()
            assert engine.status().state == "failed"
            assert [w.state for w in engine.status().workers] == ["ready", "lost"]
            with pytest.raises(dvrt.Unavailable, match="worker-1"):
                await engine.complete([1])
            assert any(r.subject == "worker-1" and r.state == "lost" for r in engine.events())

    run_briefly(main())


def test_a_worker_that_dies_while_loading_ends_the_launch_and_says_why(
    model: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    config = broken / "config.json"
    config.write_text(
        config.read_text().replace('"hidden_act": "silu"', '"hidden_act": "nonsense"')
    )

    async def main() -> None:
        with pytest.raises(dvrt.DvrtError, match="nonsense"):
            async with dvrt.launch(broken, stages=2):
                pass

    run_briefly(main())


def test_a_worker_killed_whenever_it_loads_ends_the_launch(model: Path) -> None:
    async def main() -> None:
        def kill(worker: dvrt.WorkerStatus) -> None:
            if worker.state == "loading" and worker.stage == 1:
                os.kill(worker.pid, signal.SIGKILL)

        with pytest.raises(dvrt.StageFailed, match=r"worker-1.*loss number 3 within"):
            async with dvrt.launch(model, stages=2, max_deaths=2, on_progress=kill):
                pass

    run_briefly(main())


def test_a_launch_can_be_cancelled_at_any_moment(model: Path) -> None:
    async def main(delay_s: float) -> None:
        async def launch() -> None:
            async with dvrt.launch(model, stages=2, device="null"):
                await asyncio.sleep(60)

        task = asyncio.create_task(launch())
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for delay_s in (0.0, 0.05, 0.2, 0.6, 1.2):
        run_briefly(main(delay_s))


def test_workers_outlive_nobody(model: Path) -> None:
    """The launching program is killed: its workers and their fork server are gone with it."""
    program = (
        "import asyncio, sys, dvrt\n"
        "async def main():\n"
        "    async with dvrt.launch(sys.argv[1], stages=2, device='null') as engine:\n"
        "        print(*(w.pid for w in engine.status().workers), flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program, str(model)], stdout=subprocess.PIPE, text=True, cwd=HOUSE
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        family = psutil.Process(launcher.pid).children(recursive=True)
        assert len(pids) == 2
        launcher.kill()
        launcher.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive


def test_workers_idle_for_longer_than_their_lease_live_on(model: Path) -> None:
    async def main() -> None:
        options = {"heartbeat_s": 0.05, "heartbeat_misses": 4, "lease_s": 0.5}
        async with dvrt.launch(model, stages=2, device="null", **options) as engine:
            await asyncio.sleep(1.5)
            done = await engine.complete([1], max_tokens=3, temperature=0.0, ignore_eos=True)
            assert len(done.token_ids) == 3

    run_briefly(main())


def test_tokens_do_not_depend_on_processes_or_loops(model: Path) -> None:
    async def main(**options: object) -> list[tuple[int, ...]]:
        async with dvrt.launch(model, max_context=128, batch_size=4, **options) as engine:
            wishes = [
                engine.complete([i, i + 1], max_tokens=12, seed=i, temperature=0.8)
                for i in range(9)
            ]
            return [done.token_ids for done in await asyncio.gather(*wishes)]

    together = asyncio.run(main(in_process=True))
    assert asyncio.run(main(stages=2, loop="asyncio")) == together
    assert asyncio.run(main(stages=3)) == together


def test_a_stage_holds_its_own_layers_only(tmp_path: Path) -> None:
    """A checkpoint of 300 MB over three stages: no worker grows by much more than its share."""
    big = write_tiny(tmp_path / "big", "gpt2", n_layers=6, hidden_size=1024, vocab_size=1000)
    total = sum(file.stat().st_size for file in big.glob("*.safetensors"))
    assert total > 280 << 20

    async def main() -> None:
        async with dvrt.launch(big, stages=3, max_context=64, batch_size=1) as engine:
            await engine.complete([1, 2], max_tokens=2, temperature=0.0, ignore_eos=True)
            workers = engine.status().workers
            assert all(w.weights_bytes < total * 0.37 for w in workers)
            for worker in workers:
                memory = psutil.Process(worker.pid).memory_full_info()
                assert memory.uss < worker.weights_bytes + worker.kv_bytes + (170 << 20)

    run_briefly(main())


def test_a_worker_too_many_waits_and_ends_in_peace_and_one_with_a_wrong_secret_is_refused(
    model: Path,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def join(secret: str) -> tuple[int, str]:
        words = ["-m", "dvrt", "worker", "--join", f"127.0.0.1:{port}"]
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            env={**os.environ, "DVRT_SECRET": secret},
            cwd=HOUSE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, words_said = await worker.communicate()
        return worker.returncode or 0, words_said.decode()

    async def main() -> None:
        options = {"device": "null", "control_port": port, "secret": "right"}
        async with dvrt.launch(model, **options) as engine:
            waiting = asyncio.create_task(join("right"))
            refused, said = await join("wrong")
            assert refused == 1
            assert "secret" in said
            assert "Traceback" not in said
            while len(engine.status().workers) < 2:
                await asyncio.sleep(0.05)
            assert [each.role for each in engine.status().workers] == ["stage", "spare"]
            assert engine.is_healthy()
        assert (await waiting)[0] == 0

    run_briefly(main())


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and ip")
def test_a_worker_joins_by_hand_across_network_namespaces(model: Path) -> None:
    tag = f"{os.getpid() % 10000}"
    here, there = f"dvrt-a{tag}", f"dvrt-b{tag}"
    run = lambda *words: subprocess.run(words, check=True)  # noqa: E731
    run("ip", "netns", "add", here)
    run("ip", "netns", "add", there)
    try:
        run("ip", "link", "add", f"va{tag}", "netns", here, "type", "veth",
            "peer", "name", f"vb{tag}", "netns", there)  # fmt: skip
        for namespace, device, address in (
            (here, f"va{tag}", "10.77.0.1"),
            (there, f"vb{tag}", "10.77.0.2"),
        ):
            run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device)
            run("ip", "-n", namespace, "link", "set", device, "up")
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        dvrt_in = lambda namespace: ["ip", "netns", "exec", namespace, sys.executable, "-m", "dvrt"]  # noqa: E731
        secret = {**os.environ, "DVRT_SECRET": "between namespaces"}
        launcher = subprocess.Popen(
            [*dvrt_in(here), "launch", str(model), "--stages", "2", "--external-workers", "1",
             "--control-host", "10.77.0.1", "--control-port", "7777",
             "--prompt-ids", "1,2,3", "--max-tokens", "4", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=secret, cwd=HOUSE,
        )  # fmt: skip
        worker = _join_once_listening(dvrt_in(there), secret)
        answer, _ = launcher.communicate(timeout=90)
        assert '"token_ids"' in answer
        assert launcher.returncode == 0
        assert worker.wait(timeout=20) == 0
    finally:
        run("ip", "netns", "delete", here)
        run("ip", "netns", "delete", there)


def _join_once_listening(dvrt_there: list[str], secret: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the worker; it waits by itself until the control port is there."""
    words = [*dvrt_there, "worker", "--join", "10.77.0.1:7777"]
    return subprocess.Popen(words, env=secret, cwd=HOUSE, stderr=subprocess.DEVNULL)
