"""The moments at which a worker can die, and how to be there: methods wrapped for one test.

Also imported by the fork server of real processes (see ``saboteur``), so it patches by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any

from dvrt.actors.node import Node, household
from dvrt.cluster.dispatch import Dispatcher
from dvrt.cluster.overseer import Overseer
from dvrt.cluster.reports import Reports
from dvrt.cluster.restoration import Restorer
from dvrt.stages.executor import StageExecutor
from dvrt.stages.host import HostActor
from dvrt.stages.pager import Pager
from dvrt.stages.replicator import Replicator
from dvrt.stages.shipper import Shipper
from dvrt.stages.stage import StageActor

_here: list[str] = []


def be_a_process() -> None:
    """From now on, this process remembers the name of its first node."""
    enter = Node.__aenter__

    async def remembered(node: Node) -> Node:
        _here.append(node.name)
        return await enter(node)

    Node.__aenter__ = remembered  # type: ignore[method-assign]


def current_worker() -> str:
    """The worker whose code runs: a task's by its household, a process's by its only node."""
    nodes = household.get()
    if nodes is not None:
        return next(iter(nodes)).name if nodes else ""
    return _here[0] if _here else ""


@dataclass(frozen=True)
class Moment:
    """A call of ``method`` that ``when`` accepts. ``nth`` of them is the one; ``at_end``: after it.

    ``of_controller`` moments happen there; ``when`` gets the name of the worker that is meant.
    """

    owner: type
    method: str
    when: Callable[..., bool] = lambda *_: True
    nth: int = 1
    at_end: bool = False
    of_controller: bool = False


def _decodes(_: Any, step: Any, *__: Any) -> bool:
    return bool(step.decodes)


def _chunks(_: Any, step: Any, *__: Any) -> bool:
    return bool(step.chunks)


def _direction(wanted: str) -> Callable[..., bool]:
    return lambda _, direction, *__: direction == wanted


def _replaces(overseer: Overseer, loaded: Any) -> bool:
    seat = overseer.topology.seat(loaded.pipeline, loaded.stage)
    return seat is not None and seat.is_missed


def _is_of(name: str, _: Reports, seat: Any, *__: Any) -> bool:
    return bool(seat.owner == name)


MOMENTS = {
    "loading": Moment(StageActor, "_load_and_report"),
    "loaded": Moment(StageActor, "_load_and_report", at_end=True),
    "prompt": Moment(StageExecutor, "execute", _chunks, nth=2),
    "prompt transfer": Moment(Shipper, "_send_piece", nth=3),
    "before commit": Moment(Shipper, "_commit"),
    "before compute": Moment(StageActor, "_accept", _decodes, nth=9),
    "after compute": Moment(StageExecutor, "execute", _decodes, nth=9, at_end=True),
    "result sent": Moment(StageActor, "_finish", _decodes, nth=9, at_end=True),
    "before replication": Moment(Replicator, "_send", nth=2),
    "after replication": Moment(Replicator, "_send", nth=2, at_end=True),
    "acknowledged": Moment(Reports, "stored", _is_of, nth=2, of_controller=True),
    "swap in": Moment(Pager, "_copy", _direction("in"), nth=3),
    "swap out": Moment(Pager, "_copy", _direction("out"), nth=3),
    "recovery": Moment(Overseer, "loaded", _replaces, of_controller=True),
    "restore": Moment(Restorer, "begin", of_controller=True),
    "shutdown": Moment(HostActor, "on_stop"),
}
CHANGES = {
    "new stage loads": Moment(StageActor, "_load_and_report", nth=2),
    "new stage loaded": Moment(StageActor, "_load_and_report", nth=2, at_end=True),
    "new stages take over": Moment(Dispatcher, "take_over", of_controller=True),
    "new stages took over": Moment(Dispatcher, "take_over", at_end=True, of_controller=True),
    "log moves": Moment(Shipper, "_send_piece", nth=2),
    "log moved": Moment(Shipper, "_commit", at_end=True),
    "old stage closes": Moment(HostActor, "_close"),
    "old stage closed": Moment(HostActor, "_close", at_end=True),
}
"""While the split changes; for a worker that had a stage before."""


@contextmanager
def armed(name: str, worker: str, strike: Callable[[], None]) -> Iterator[list[str]]:
    """``strike()`` is called once, at this moment of this worker; the list then has its name."""
    moment = (MOMENTS | CHANGES)[name]
    before = getattr(moment.owner, moment.method)
    struck: list[str] = []
    count = 0

    def is_it(*given: Any) -> bool:
        nonlocal count
        if struck:
            return False
        if moment.of_controller:
            is_here = moment.when(worker, *given) if moment.when is _is_of else moment.when(*given)
        else:
            is_here = current_worker() == worker and moment.when(*given)
        count += is_here
        return is_here and count == moment.nth

    def hit() -> None:
        struck.append(worker)
        strike()

    async def wrapped_coroutine(*given: Any, **named: Any) -> Any:
        is_now = is_it(*given)
        if is_now and not moment.at_end:
            hit()
        result = await before(*given, **named)
        if is_now and moment.at_end:
            hit()
        return result

    def wrapped_function(*given: Any, **named: Any) -> Any:
        is_now = is_it(*given)
        if is_now and not moment.at_end:
            hit()
        result = before(*given, **named)
        if is_now and moment.at_end:
            hit()
        return result

    is_coroutine = iscoroutinefunction(before)
    wrapped = wrapped_coroutine if is_coroutine else wrapped_function
    setattr(moment.owner, moment.method, wrapped)
    try:
        yield struck
    finally:
        setattr(moment.owner, moment.method, before)
