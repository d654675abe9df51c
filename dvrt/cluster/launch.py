"""``dvrt.launch``: from options to a serving engine, and back to a clean house."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dvrt
from dvrt.actors.node import Node
from dvrt.cluster.controller import Controller, Progress
from dvrt.cluster.engine import Engine
from dvrt.cluster.journal import Journal
from dvrt.cluster.orphans import Claimant, Orphan, recall_crew
from dvrt.cluster.outlook import Watchfulness
from dvrt.cluster.persistence import kept_directory, remove_others
from dvrt.cluster.plan import ClusterPlan, plan_cluster
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError, ModelError, StageFailed, TransportError
from dvrt.models.devices import require_cuda
from dvrt.models.text import TextCodec
from dvrt.observe.metrics import Metrics
from dvrt.observe.trace import Tracer
from dvrt.processes.nursery import Nursery
from dvrt.processes.task_nursery import TaskNursery
from dvrt.processes.worker import Worker, WorkerNursery
from dvrt.processes.worker_process import WorkerBoot
from dvrt.protocol.claims import CrewRecord
from dvrt.transport.tcp import split_host_port
from dvrt.virtual import precise_clock

if TYPE_CHECKING:
    from dvrt.actors.ref import ActorRef

CONTROLLER = "controller"
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Libraries start with one thread; a stage sets what it was told to."""


def launch(
    model: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    on_progress: Progress | None = None,
    **options: Any,
) -> AbstractAsyncContextManager[Engine]:
    """Start a pipeline for a checkpoint directory; ``async with`` gives its Engine.

    Options are those of ``python -m dvrt launch`` with underscores (see LaunchOptions); ``config``
    is a TOML file of them, which keywords override. ``host``, ``port``, ``api_key`` and
    ``drain_limit_s`` are for the command's HTTP server, which this does not start. ``on_progress``
    is told of every change of a worker's state and, now and then, of how much of its weights a
    stage has read. Entering raises ConfigError, ModelError or StageFailed and leaves nothing
    behind; so does cancelling it. Leaving ends running requests with Unavailable and all workers.
    """
    if model is not None:
        options["model"] = os.fspath(model)
    chosen = LaunchOptions.from_toml(config, **options) if config else LaunchOptions.make(**options)
    return _launched(chosen, on_progress)


@asynccontextmanager
async def _launched(options: LaunchOptions, on_progress: Progress | None) -> AsyncIterator[Engine]:
    plan = await asyncio.to_thread(_inspect, options)
    metrics = Metrics()
    metrics.describe_model(name=plan.card.name, family=plan.card.family, version=dvrt.__version__)
    async with AsyncExitStack() as stack:
        tracer = stack.enter_context(_tracer(Path(options.trace))) if options.trace else None
        journal = await stack.enter_async_context(_journal(options))
        controller = Controller(
            plan,
            metrics,
            Watchfulness.of(options),
            tracer=tracer,
            on_progress=on_progress,
            journal=journal,
            reattach_s=options.reattach,
        )
        secret = _secret(options, journal)
        former = await recall_crew(journal) if journal is not None else None
        node = await stack.enter_async_context(_controller_node(options, secret, former))
        me = node.spawn(controller, name=CONTROLLER)
        controller.open()
        metrics.watch_workers(lambda: controller.status().workers)
        nursery = await stack.enter_async_context(_nursery(options, plan))
        stack.push_async_callback(node.stop, CONTROLLER, "the cluster closes")
        loading = asyncio.create_task(asyncio.to_thread(TextCodec.load, _directory(options)))
        stack.push_async_callback(_end_task, loading)
        try:
            async with asyncio.timeout(options.start_limit_s):
                kept = (
                    kept_directory(options, plan, journal.secret) if journal is not None else None
                )
                boot = _boot(plan, me, secret, journal, kept)
                if former is not None and journal is not None:
                    claimant = Claimant(node, journal, former)
                    orphans = await _orphans(plan, claimant, nursery, boot)
                    controller.succession.take_in(former, orphans)
                if kept is not None:
                    await asyncio.to_thread(remove_others, kept)
                if options.orphan_grace:
                    controller.succession.keep_book(node.address)
                spawn = partial(_spawn, nursery, boot)
                crew = controller.start(spawn, n_external=options.external_workers)
                stack.push_async_callback(crew.aclose)
                text, _ = await asyncio.gather(loading, controller.wait_ready())
        except TimeoutError:
            reason = f"not ready within {options.start_limit_s:g} s"
            raise StageFailed("pipeline", reason, text=f"the pipeline was {reason}") from None
        yield Engine(
            controller=controller,
            card=replace(plan.card, has_tokenizer=text is not None),
            defaults=plan.defaults,
            text=text,
            metrics=metrics,
        )


@asynccontextmanager
async def _journal(options: LaunchOptions) -> AsyncIterator[Journal | None]:
    """The journal, if there is one, closed behind everything that writes to it."""
    path = options.journal_path
    if path is None:
        yield None
        return
    if options.persist is not None:
        _make_place(path.parent, options.persist)
    journal = await Journal.open(path, model=str(_directory(options)))
    try:
        yield journal
    finally:
        await journal.aclose()


def _make_place(directory: Path, persist: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{directory} cannot be made: {error.strerror}"
        raise ConfigError(f"persist is {persist!r}; {what}") from error


def _secret(options: LaunchOptions, journal: Journal | None) -> bytes:
    """Workers of an earlier life know the journal's."""
    if options.secret:
        return options.secret.encode()
    return secrets.token_bytes(32) if journal is None else journal.secret


async def _end_task(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _tracer(path: Path) -> Tracer:
    """In the time of this loop, which is that of the spans."""
    return Tracer(path, clock=precise_clock(asyncio.get_running_loop()))


def _inspect(options: LaunchOptions) -> ClusterPlan:
    """Everything that can be refused before a worker exists."""
    directory = _directory(options)
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such directory")
    plan = plan_cluster(options, directory)
    if options.external_workers < options.n_workers + options.spares:
        require_cuda(plan.device)
    return plan


def _directory(options: LaunchOptions) -> Path:
    return Path(options.model).expanduser().absolute()


@asynccontextmanager
async def _controller_node(
    options: LaunchOptions, secret: bytes, former: CrewRecord | None
) -> AsyncIterator[Node]:
    """At the address of the former life, if its workers may be there and the address is free."""
    address = (
        "local://"
        if options.in_process
        else tcp_address(options.control_host, options.control_port)
    )
    async with AsyncExitStack() as stack:
        node = None
        if former is not None and options.orphan_grace and _may_be_at(options, former.controller):
            with suppress(TransportError):
                again = Node(name=CONTROLLER, address=former.controller, secret=secret)
                node = await stack.enter_async_context(again)
        if node is None:
            fresh = Node(name=CONTROLLER, address=address, secret=secret)
            node = await stack.enter_async_context(fresh)
        yield node


def _may_be_at(options: LaunchOptions, address: str) -> bool:
    """Whether these options may have the controller there."""
    if options.in_process or not address.startswith("tcp://"):
        return options.in_process and address.startswith("local://")
    host, port = split_host_port(address)
    return host == options.control_host and options.control_port in (0, port)


async def _orphans(
    plan: ClusterPlan, claimant: Claimant, nursery: WorkerNursery, boot: WorkerBoot
) -> Sequence[Orphan]:
    takes_in = plan.blueprint.options.orphan_grace > 0
    if takes_in and claimant.is_at_home:
        return await claimant.claim(plan, nursery, boot)
    why = "the controller's address is another one" if takes_in else "this launch takes in nobody"
    await claimant.dismiss_all(why)
    return ()


def tcp_address(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _nursery(options: LaunchOptions, plan: ClusterPlan) -> WorkerNursery:
    if options.in_process:
        return TaskNursery()
    outlives = options.orphan_grace > 0
    return Nursery(preload=_preload(plan), env=_THREADS, loop=options.loop, outlives=outlives)


def _preload(plan: ClusterPlan) -> list[str]:
    """What every worker imports anyway, imported once; the null device needs no torch."""
    if plan.device == "null":
        return ["dvrt.stages.assembly", "dvrt.models.hash_model"]
    return ["dvrt.stages.assembly", "dvrt.models.runner", *plan.modelling_modules]


def _boot(
    plan: ClusterPlan,
    controller: ActorRef,
    secret: bytes,
    journal: Journal | None,
    kept: Path | None,
) -> WorkerBoot:
    """What every worker of this launch is told, but for its name."""
    options, timing = plan.blueprint.options, plan.blueprint.timing
    return WorkerBoot(
        name="",
        controller=str(controller),
        secret=secret,
        heartbeat_s=options.heartbeat_s,
        lease_s=options.lease_s,
        replica_bytes=options.replica_memory or 0,
        persist=str(kept or ""),
        start_s=timing.start_s if plan.device == "null" and timing is not None else 0.0,
        orphan_grace_s=options.orphan_grace,
        generation=journal.generation if journal is not None else 0,
    )


async def _spawn(nursery: WorkerNursery, boot: WorkerBoot, name: str) -> Worker:
    own = replace(boot, name=name)
    return await nursery.spawn("dvrt.stages.assembly:run_stage_worker", own, name=name)
