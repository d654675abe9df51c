"""The ``launch`` command of a plan, such that ``launch`` takes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from dvrt.planner.judge import Candidate
from dvrt.planner.memory import chunk_tokens
from dvrt.planner.plan import Plan
from dvrt.planner.profile import Profile


def launch_line(plan: Plan, model: str | None = None) -> str:
    """The ``python -m dvrt launch`` command of the winner, for each of its groups.

    Machines that the split leaves idle are named as spares, unless the plan is to be cheap.
    ``--kv-memory`` is all that the fullest stage has beside its weights.
    """
    split = plan.best.split
    words = ["python", "-m", "dvrt", "launch", model or plan.given.profile.model.name]
    words += _shape(plan)
    words += ["--max-context", str(plan.given.workload.longest_context)]
    words += ["--chunk-tokens", str(chunk_tokens(plan.given.profile, plan.given.workload, split))]
    words += ["--swap", "--device-slots", str(split.device_slots)] if split.swap else []
    words += _kv_memory(plan.best)
    words += ["--replicas", str(split.replicas), "--spares", str(_spares(plan))]
    words += _measured_with(plan.given.profile)
    line = shlex.join(words)
    return f"{line}  # {split.groups} times, one a group" if split.groups > 1 else line


def _shape(plan: Plan) -> Iterator[str]:
    split = plan.best.split
    given = {"stages": split.stages}
    if split.prompt_stages:
        given = {"prompt-stages": split.prompt_stages, "token-stages": split.stages}
    given |= {"microbatches": split.microbatches, "batch-size": split.batch}
    if split.prompt_stages:
        given["prompt-microbatches"] = split.prompt_microbatches
        given["prompt-batch-size"] = split.prompt_batch
    for name, value in given.items():
        yield f"--{name}"
        yield str(value)


def _spares(plan: Plan) -> int:
    split, given = plan.best.split, plan.given
    return 0 if given.is_for_cost else (given.machines - split.machines) // split.groups


def _kv_memory(candidate: Candidate) -> list[str]:
    """Nothing where one side has less room than the other needs: ``launch`` has one limit for
    both."""
    devices = [need for need in candidate.needs if need.weight_bytes]
    room = min(need.available_bytes - need.weight_bytes for need in devices)
    most = max(need.kv_bytes for need in devices)
    if most > room:
        return []
    whole = room >> 20
    return ["--kv-memory", f"{whole}MiB" if whole << 20 >= most else str(room)]


def _measured_with(profile: Profile) -> list[str]:
    launch = profile.launch
    if launch is None:
        return []
    words = ["--device", launch.device, "--dtype", launch.dtype, "--threads", str(launch.threads)]
    return words if launch.exact else [*words, "--no-exact"]
