"""An event loop in virtual time: sleeping costs nothing, the order of events is seeded.

When nothing is ready, time jumps to the next timer. There is no I/O and there are no threads.

What keeps its order and what does not. Callbacks of ``call_soon`` run first in, first out, as
asyncio promises. What asyncio leaves open, the seed decides: the order of timers that are due at
the same instant, and which of several tasks that are ready side by side, with no plain callback
between them, goes first. One task's own steps never change places. With ``seed=None`` nothing is
permuted: ready things run first in, first out, and so do timers of the same instant.
"""

from __future__ import annotations

import asyncio
import heapq
import io
import random
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from dvrt.clock import Clock, MonotonicClock
from dvrt.errors import DvrtError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_COMPACT_ABOVE = 100
"""As many cancelled timers may wait in the heap before it is rebuilt without them."""


class Deadlock(DvrtError):
    """Nothing is ready and no timer runs: virtual time would stand still for ever."""


class _Timer(asyncio.TimerHandle):
    """A timer with a rank among those of the same instant."""

    __slots__ = ("rank",)

    rank: tuple[float, int]

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, _Timer):
            return NotImplemented
        return (self.when(), self.rank) < (other.when(), other.rank)


class VirtualLoop(base_events.BaseEventLoop):
    """A loop whose ``time()`` starts at 0 and moves only when nothing is ready.

    ``run_in_executor`` (and so ``asyncio.to_thread``) runs its function inline, in no time. Files,
    sockets, processes and signals raise RuntimeError. Raises Deadlock, with every task's stack,
    when nothing could ever happen again.
    """

    _ready: deque[asyncio.Handle]

    def __init__(self, seed: int | None = 0) -> None:
        super().__init__()
        self._now = 0.0
        self._random = None if seed is None else random.Random(seed)
        self._timers: list[_Timer] = []
        self._n_timers = self._n_cancelled = 0

    def time(self) -> float:
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        luck = self._random.random() if self._random is not None else 0.0
        timer.rank = (luck, self._n_timers)
        self._n_timers += 1
        heapq.heappush(self._timers, timer)
        return timer

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        self.call_soon(_run_inline, future, partial(func, *args))
        return future

    def close(self) -> None:
        super().close()
        self._timers.clear()

    def _run_once(self) -> None:
        """One turn: what is due becomes ready, and all that is ready now runs."""
        if not self._ready:
            self._now = max(self._now, self._next_when())
        while self._timers and self._timers[0].when() <= self._now:
            self._ready.append(heapq.heappop(self._timers))
        if self._random is not None and len(self._ready) > 1:
            self._permute(self._random)
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _next_when(self) -> float:
        timers = self._timers
        while timers and timers[0].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise Deadlock(f"at {self._now:.6f} s nothing can ever happen:\n{_stacks(self)}")
        return timers[0].when()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by a timer that is cancelled; now and then the heap is cleared of them."""
        self._n_cancelled += 1
        if self._n_cancelled > max(_COMPACT_ABOVE, len(self._timers) // 2):
            self._timers = [timer for timer in self._timers if not timer.cancelled()]
            heapq.heapify(self._timers)
            self._n_cancelled = 0

    def _permute(self, rng: random.Random) -> None:
        """Shuffle each run of neighbouring task steps; plain callbacks keep their places."""
        ready = list(self._ready)
        start = 0
        for stop in range(len(ready) + 1):
            if stop < len(ready) and _is_task_step(ready[stop]):
                continue
            if stop - start > 1:
                ready[start:stop] = rng.sample(ready[start:stop], stop - start)
            start = stop + 1
        self._ready.clear()
        self._ready.extend(ready)

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """A signal handler of the main thread may schedule; nothing sleeps that must be woken."""


def _is_task_step(handle: asyncio.Handle) -> bool:
    callback = handle._callback  # type: ignore[attr-defined]
    return isinstance(getattr(callback, "__self__", None), asyncio.Task)


def _run_inline(future: asyncio.Future[T], work: Callable[[], T]) -> None:
    if future.done():
        return
    try:
        result = work()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _stacks(loop: asyncio.AbstractEventLoop) -> str:
    text = io.StringIO()
    for task in sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name()):
        task.print_stack(file=text)
    return text.getvalue() or "there are no tasks"


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refuse(self: VirtualLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{name}: virtual time has no files, sockets, processes or signals")

    return refuse


_REFUSED = """
    add_reader add_writer remove_reader remove_writer add_signal_handler create_connection
    create_server create_unix_connection create_unix_server create_datagram_endpoint
    connect_accepted_socket connect_read_pipe connect_write_pipe getaddrinfo getnameinfo sendfile
    sock_accept sock_connect sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall
    sock_sendfile sock_sendto start_tls subprocess_exec subprocess_shell
"""
for _name in _REFUSED.split():
    setattr(VirtualLoop, _name, _refuse(_name))


def run_virtual(main: Coroutine[Any, Any, T], *, seed: int | None = 0) -> T:
    """What ``asyncio.run`` does, in virtual time. Raises Deadlock."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed)) as runner:
        return runner.run(main)


def precise_clock(loop: asyncio.AbstractEventLoop) -> Clock:
    """The loop's time in full precision: uvloop's own has whole milliseconds only."""
    return loop if isinstance(loop, VirtualLoop) else MonotonicClock()
