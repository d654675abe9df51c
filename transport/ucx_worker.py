"""UCX for one event loop: sends and receives that call back when they are over.

Owns the loop's UCX context and worker, which live until the loop is closed, and drives them from
the worker's descriptor. Knows nothing of channels.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from dvrt.buffers import MemoryKind, Region
from dvrt.transport.ucx_library import load

OPTIONS = {"MM_ERROR_HANDLING": "y", "MM_FIFO_SIZE": "1024", "KEEPALIVE_INTERVAL": "2s"}
"""The first lets endpoints that notice their peer's end use shared memory.

To notice also keeps them from process_vm_readv, at whose failure UCX ends the process it runs in.
What goes through shared memory instead is woken for less often with a longer queue.
"""
STUCK_S, STUCK_REFUSALS = 0.5, 64
"""A worker that lost a peer is given up when it refuses to sleep for so long, so often, since."""
TURN_S = 0.002
"""The loop's other callbacks wait at most about so long for UCX."""
FORGOTTEN = 32
"""Messages may come so many channels too late and are still thrown away."""
END_S = 1.0
"""The end of a worker takes at most so long; it is a matter of milliseconds."""
_ARM_TRIES = 8
_SPIN_S, _PAUSE_S = 0.0003, 0.001
"""So long a worker that neither moves nor sleeps is asked at once again, then after a pause."""
_LONG_S, _LONG_PAUSE_S = 0.25, 0.02
_NOTHING = bytearray(1)
_log = logging.getLogger("dvrt.transport")


class Move:
    """A send or receive that UCX has; its memory is kept until UCX is done with it."""

    __slots__ = ("_memory", "error", "is_done", "on_done", "request", "tag")

    def __init__(self, request: Any, memory: Any, tag: int, on_done: Callable[[], None]) -> None:
        self.request, self._memory = request, memory
        self.tag, self.on_done = tag, on_done
        self.is_done = False
        self.error: Exception | None = None

    def settle(self) -> None:
        """UCX is done: let go of the memory, and tell."""
        self.is_done = True
        try:
            self.request.check_error()
        except Exception as error:  # ucxx raises classes of its own making
            self.error = error
        self.request = self._memory = None
        self.on_done()


class _DeviceBytes:
    """CUDA memory as ucxx wants to be given it."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self.__cuda_array_interface__ = {
            "data": (region.address, False),
            "shape": (region.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


class UcxWorker:
    """Belongs to the running loop, whose reader keeps it alive; see ``worker_of_loop``.

    Dropping a ucxx request cancels it, which UCX may ignore: a Move is therefore kept until it is
    done, if need be as long as the worker. Dropping an endpoint that is open may block for ever:
    endpoints are closed here, and kept until that is done.
    """

    def __init__(self) -> None:
        api, self._array = load()
        self._loop = asyncio.get_running_loop()
        self._api = api
        self._context = api.UCXContext({**OPTIONS}, (api.Feature.TAG, api.Feature.WAKEUP))
        self._worker = api.UCXWorker(self._context)
        self._worker.init_blocking_progress_mode()
        self._fd = self._worker.epoll_file_descriptor
        self.version: tuple[int, int, int] = api.get_ucx_version()
        self.moves_cuda = bool(self._context.cuda_support)
        self.peers: dict[bytes, Any] = {}
        self.address = bytes(memoryview(self._worker.address))
        self._endpoints: set[Any] = set()
        self._moves: set[Move] = set()
        self._when_dry: list[Callable[[], None]] = []
        self._forgotten: deque[tuple[Any, Any]] = deque(maxlen=FORGOTTEN)
        self._handle: asyncio.Handle | None = None
        self._is_watching = self._is_pausing = self._is_touched = self._is_turning = False
        self._moved_at = time.monotonic()
        self._refusals = 0
        self._asleep_at = time.monotonic()
        self._lost_at = 0.0
        self.is_stuck = False
        self._self_endpoint = self._open(self.address, is_noticing=False)
        self._next_channel = 0
        self._kick()

    def take_channel(self) -> int:
        """A number that no channel of this worker had for very long."""
        self._next_channel = (self._next_channel + 1) % (1 << 32)
        return self._next_channel

    def open(self, address: bytes, on_lost: Callable[[], None]) -> Any:
        """An endpoint to another worker; ``on_lost`` hears when UCX cannot reach it any more."""
        endpoint = self._open(address, is_noticing=True)
        endpoint.set_close_callback(self._loop.call_soon, (on_lost,))
        return endpoint

    def _open(self, address: bytes, *, is_noticing: bool) -> Any:
        where = self._api.UCXAddress.create_from_buffer(address)
        endpoint = self._worker.create_endpoint_from_worker_address(where, is_noticing)
        self._endpoints.add(endpoint)
        self._kick()
        return endpoint

    def close_lost(self, endpoint: Any) -> None:
        """The peer is gone; what UCX had begun with it ends with an error, or never."""
        self._lost_at = time.monotonic()
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
            endpoint.remove_close_callback()
            if endpoint.alive:
                self._add(endpoint.close(), endpoint, 0, None)

    def send(
        self, endpoint: Any, memory: Region, tag: int, on_done: Callable[[], None] | None = None
    ) -> Move:
        array = self._as_array(memory)
        request = endpoint.tag_send(array, self._api.UCXXTag(tag))
        return self._add(request, (array, memory), tag, on_done)

    def receive(self, memory: Region, tag: int, on_done: Callable[[], None] | None = None) -> Move:
        """The next message with this tag, from anybody; a shorter one fills the memory's start."""
        array = self._as_array(memory)
        request = self._worker.tag_recv(array, self._api.UCXXTag(tag))
        return self._add(request, (array, memory), tag, on_done)

    def satisfy(self, move: Move) -> None:
        """End a receive that nobody will send to, by a message to ourselves.

        Nothing happens to one that has a sender already: UCX is still at it.
        """
        if not move.is_done:
            self.send(self._self_endpoint, Region.of(_NOTHING), move.tag)

    def copy(self, source: Region, target: Region, on_done: Callable[[], None]) -> Move:
        """Copy within this process, from and to any kind of memory that UCX knows."""
        tag = self.take_channel() << 32
        move = self.receive(target, tag, on_done)
        self.send(self._self_endpoint, source, tag)
        return move

    def forget(self, tag: int, mask: int) -> None:
        """Nobody will receive such messages any more: throw away those that come.

        They are short, and looked for when the next ones are forgotten.
        """
        tags = self._api.UCXXTag(tag), self._api.UCXXTagMask(mask)
        self._forgotten.append(tags)
        for each in self._forgotten:
            while (found := self._worker.tag_probe(*each, remove=True)).matched:
                array = self._array(bytearray(max(1, found.length)))
                request = self._worker.tag_recv_with_handle(array, found)
                self._add(request, array, 0, None)

    def when_dry(self, callback: Callable[[], None]) -> None:
        """Call back once, as soon as UCX has found nothing more to do."""
        self._when_dry.append(callback)
        self._kick()

    def _as_array(self, memory: Region) -> Any:
        return self._array(
            _DeviceBytes(memory) if memory.kind is MemoryKind.CUDA else memory.view()
        )

    def _add(self, request: Any, memory: Any, tag: int, on_done: Callable[[], None] | None) -> Move:
        move = Move(request, memory, tag, on_done or _ignore)
        self._moves.add(move)
        self._kick()
        return move

    def _kick(self) -> None:
        """Something was asked of UCX: it gets a turn soon, whether or not it was asleep."""
        self._is_touched = True
        if self._is_turning or (self._handle is not None and not self._is_pausing):
            return
        if self._handle is not None:
            self._handle.cancel()
        self._is_pausing = False
        self._handle = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._is_turning = True
        try:
            self._rest(self._progress(time.monotonic() + TURN_S))
        finally:
            self._is_turning = False

    def _progress(self, ends_at: float) -> bool:
        """Let UCX work until it sleeps, which is True, or the turn is over."""
        tries = 0
        while tries < _ARM_TRIES:
            self._is_touched = False
            is_dry = self._run_dry(ends_at)
            self._settle()
            if is_dry and not self._is_touched:
                self._tell_dry()
                if not self._is_touched and self._worker.arm():
                    self._refusals, self._asleep_at = 0, time.monotonic()
                    return True
                tries += 1
                self._refusals += 1
            if time.monotonic() > ends_at:
                break
        return False

    def _run_dry(self, ends_at: float) -> bool:
        while self._worker.progress_once():
            self._moved_at = time.monotonic()
            if self._moved_at > ends_at:
                return False
        self._worker.progress()  # which also cancels what failed endpoints left
        return True

    def _settle(self) -> None:
        for move in [move for move in self._moves if move.request.completed]:
            self._moves.remove(move)
            move.settle()

    def _tell_dry(self) -> None:
        callbacks, self._when_dry = self._when_dry, []
        for callback in callbacks:
            callback()

    def _rest(self, is_asleep: bool) -> None:
        """Come back when UCX wakes up; or soon; or later, where coming soon was in vain.

        A worker with messages for a peer that does not read them does not go to sleep.
        """
        idle_s = time.monotonic() - self._moved_at
        is_restless = self._is_pausing = not is_asleep and idle_s > _SPIN_S
        if is_restless is self._is_watching:
            self._watch(not is_restless)
        if is_restless:
            self._judge()
            if self.is_stuck and not self._when_dry:
                return
            pause_s = _PAUSE_S if idle_s < _LONG_S else _LONG_PAUSE_S
            self._handle = self._loop.call_later(pause_s, self._turn)
        elif not is_asleep:
            self._handle = self._loop.call_soon(self._turn)

    def _judge(self) -> None:
        """Give the worker up, once, if a dead peer may have blocked it.

        One that is killed while it writes a message into our shared memory leaves a gap that UCX
        waits at for ever, and with it everything that other peers write behind the gap.
        """
        is_blocked = self._asleep_at < self._lost_at < time.monotonic() - STUCK_S
        if not is_blocked or self._refusals < STUCK_REFUSALS or self.is_stuck:
            return
        self.is_stuck = True
        _log.warning("UCX is blocked since a peer was lost; its channels are given up")
        for peer in list(self.peers.values()):
            peer.lose()

    def _watch(self, is_watching: bool) -> None:
        self._is_watching = is_watching
        if is_watching:
            self._loop.add_reader(self._fd, self._turn)
        else:
            self._loop.remove_reader(self._fd)

    def __del__(self) -> None:
        """UCX frees what is left only when the endpoints are closed."""
        closing = []
        for endpoint in getattr(self, "_endpoints", ()):
            endpoint.remove_close_callback()
            if endpoint.alive:
                closing.append(endpoint.close())
        ends_at = time.monotonic() + END_S
        while not all(request.completed for request in closing) and time.monotonic() < ends_at:
            self._worker.progress()


def _ignore() -> None:
    """For a move whose end is of no interest."""


_workers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[UcxWorker]] = (
    weakref.WeakKeyDictionary()
)


async def worker_of_loop() -> UcxWorker:
    """The running loop's worker, made when it is first asked for. Raises ConfigError."""
    loop = asyncio.get_running_loop()
    if loop not in _workers:
        await asyncio.to_thread(load)
    known = _workers.get(loop)
    worker = known() if known is not None else None
    if worker is None or worker.is_stuck:
        worker = UcxWorker()
        _workers[loop] = weakref.ref(worker)
    return worker
