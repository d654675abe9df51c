"""The simulator beside real processes: what is replayed and compared, without a word on times."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.bench.common import beside
from dvrt.bench.fidelity import Round, figures, ratios, write_trace
from dvrt.bench.fidelity_sides import launch_options, setups
from dvrt.bench.replay import replay
from dvrt.cluster.launch import launch
from dvrt.models.tiny import write_tiny
from dvrt.simulator.arrivals import Arrival, Load, arrivals
from dvrt.simulator.deployment import Failure


def test_a_trace_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (write_trace(tmp_path / name, 5.0, 4.0) for name in ("a.json", "b.json"))
    assert first.read_text() == second.read_text()
    requests = list(arrivals(Load(source=str(first))))
    assert 5 < len(requests) < 40
    assert requests[0].at_s == 0.0
    assert requests[-1].at_s < 4.0


def test_ratios_are_simulated_over_measured_of_the_same_round() -> None:
    rounds = [
        Round(
            measured={"throughput": a},
            simulated={"throughput": b},
            as_profiled={"throughput": 1.0},
            pace=[],
            requests=1,
            load=0.0,
        )
        for a, b in ((4.0, 5.0), (8.0, 8.0), (1.0, 3.0))
    ]
    assert ratios(rounds) == {"throughput": 1.25}
    assert beside(5.0, 4.0) == {"predicted": 5.0, "measured": 4.0, "prediction_error": 0.25}


def test_what_is_launched_is_what_is_simulated() -> None:
    """One machine more would not show in a ratio of medians."""
    for setup in setups(3).values():
        options = launch_options(setup)
        machines = options.get("stages", 0) or options["prompt_stages"] + options["token_stages"]
        assert machines == setup.stages + setup.prompt_stages == 3
        assert options["batch_size"] == setup.batch
        assert options.get("device_slots") == setup.device_slots


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("null"), "gpt2", n_layers=2, hidden_size=16)


@pytest.mark.parametrize("machine", [0, 1])
async def test_a_replay_with_a_machine_that_fails(model: Path, machine: int) -> None:
    """Machines are counted with those for prompts first; every request is answered all the same."""
    requests = [Arrival(0.02 * number, 8, 24) for number in range(6)]
    launched = launch(
        model,
        prompt_stages=1,
        token_stages=1,
        batch_size=4,
        max_context=64,
        device="null",
        null_step_ms=10.0,
    )
    async with launched as engine:
        before = {each.role: each.pid for each in engine.status().workers}
        failures = [Failure(at_s=0.1, machine=machine)]
        tally = await replay(engine, requests, failures=failures)
        after = {each.role: each.pid for each in engine.status().workers if each.state == "ready"}
    assert tally.counts["requests"] == 6
    assert tally.counts["output_tokens"] == 144
    assert set(figures(tally)) == {
        "throughput",
        "ttft_p50",
        "tpot_p50",
        "normalized_p50",
        "latency_p50",
    }
    lost, kept = ("prompt", "token") if machine == 0 else ("token", "prompt")
    assert after[lost] != before[lost]
    assert after[kept] == before[kept]
