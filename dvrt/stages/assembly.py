"""What a worker is made of: the model, the executor and the compute that its orders name."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dvrt.kv.spans import Span
from dvrt.models.checkpoint import read_tensor_index
from dvrt.models.hash_model import HashModel
from dvrt.models.prepared import Prepared, small
from dvrt.models.read_ahead import read_ahead
from dvrt.models.sampling import draw
from dvrt.models.spec import StageSpec
from dvrt.models.swap_hash import swapping_hash_model
from dvrt.processes.worker_process import WorkerBoot, worker_main
from dvrt.protocol.messages import LoadStage
from dvrt.stages.clock_compute import ClockCompute
from dvrt.stages.compute import Compute, LoopCompute, ThreadCompute
from dvrt.stages.executor import StageExecutor
from dvrt.stages.host import HostActor
from dvrt.stages.load_progress import LoadProgress
from dvrt.stages.model import StageModel
from dvrt.virtual import VirtualLoop

if TYPE_CHECKING:
    from dvrt.models.runner import StageRunner

_log = logging.getLogger("dvrt.stages")


async def run_stage_worker(boot: WorkerBoot) -> int:
    """A worker of a cluster, from joining to its exit code; see ``worker_main``."""
    await asyncio.sleep(boot.start_s)
    return await worker_main(boot, make_host)


def make_host(boot: WorkerBoot) -> HostActor:
    prepared = Prepared()
    return HostActor(
        boot.name,
        boot.controller,
        replica_bytes=boot.replica_bytes or sys.maxsize,
        persist=Path(boot.persist) if boot.persist else None,
        make_executor=partial(make_executor, prepared=prepared),
        make_compute=make_compute,
        prepare=partial(prepare, prepared=prepared),
    )


def prepare(
    orders: Sequence[LoadStage], is_over: Callable[[], bool], *, prepared: Prepared
) -> None:
    """All weights of the orders' model come to this process's memory, or as near as it permits, and
    its stages on the CPU are made of them."""
    directory = Path(orders[0].spec.directory)
    try:
        if not prepared.held.hold(read_tensor_index(directory), is_over=is_over):
            read_ahead(directory, is_over=is_over)
            return
        for order in orders:
            if not is_over() and prepared.wants(order.spec):
                prepared.put(_new_runner(small(order.spec), prepared), order.spec)
    except Exception as error:  # whoever loads it says what is wrong
        _log.info("nothing more is prepared: %s", error)


def make_executor(
    order: LoadStage, progress: LoadProgress | None = None, *, prepared: Prepared
) -> StageExecutor:
    """Load the stage's model; runs on the compute. Raises ModelError, OutOfMemory."""
    spec = order.spec
    try:
        model = _make_model(order, prepared, progress)
    finally:
        prepared.drop()
    return StageExecutor(
        model,
        span=Span.of(spec.first, spec.stop),
        n_layers=spec.n_layers,
        n_slots=spec.n_slots,
        batch_size=spec.batch_size,
        max_context=spec.max_context,
        draw=draw if spec.is_last else None,
    )


def _make_model(order: LoadStage, prepared: Prepared, progress: LoadProgress | None) -> StageModel:
    spec = order.spec
    if spec.device == "null":
        return swapping_hash_model(spec, order.vocab_size) if spec.swaps else _hash_model(order)
    runner = prepared.take(spec) or _new_runner(spec.on_device(), prepared, progress)
    if not spec.swaps:
        return runner
    from dvrt.models.swap_arena import swap_runner

    return swap_runner(runner, spec)


def _new_runner(
    spec: StageSpec, prepared: Prepared, progress: LoadProgress | None = None
) -> StageRunner:
    from dvrt.models.runner import StageRunner
    from dvrt.models.selfcheck import check_exactness

    runner = StageRunner(spec, progress, prepared.held)
    if spec.exact:
        found = check_exactness(runner)
        if not found.holds:
            _log.warning("layers %d to %d: %s", spec.first, spec.stop - 1, found)
    return runner


def _hash_model(order: LoadStage) -> HashModel:
    spec = order.spec
    return HashModel(
        first_layer=spec.first,
        stop_layer=spec.stop,
        n_slots=spec.n_slots,
        batch_size=spec.batch_size,
        max_context=spec.max_context,
        vocab_size=order.vocab_size,
    )


def make_compute(name: str, device: str) -> Compute:
    """A thread on a real loop; for the null device its clock. In virtual time, the loop's."""
    if isinstance(asyncio.get_running_loop(), VirtualLoop):
        return LoopCompute()
    return ClockCompute() if device == "null" else ThreadCompute(name)
