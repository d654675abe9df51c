"""What CupyDevice uses of CuPy, imitated on host memory: streams are threads, events are fences.

Streams run beside each other, so missing waits show as wrong bytes; the kernels are run by the
reference on the processor, from the arguments that the real ones would get.
"""

import ctypes
import queue
import threading
import time
from types import SimpleNamespace

import numpy as np


class FakeError(RuntimeError):
    pass


class Device:
    mem_info = (1 << 20, 1 << 30)

    def __init__(self, ordinal):
        if ordinal > 3:
            raise FakeError("invalid device ordinal")
        self.attributes = {"MultiProcessorCount": 4}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None


class Stream:
    current = threading.local()
    delay_s = 0.0

    def __init__(self, *, non_blocking=False):
        assert non_blocking, "a blocking stream would wait for torch's default stream"
        self._start()

    def _start(self):
        self.ptr = id(self)
        self.work = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="dvrt fake stream", daemon=True)
        self.thread.start()

    def _run(self):
        while (work := self.work.get()) is not None:
            work()

    def __enter__(self):
        self.outer = getattr(Stream.current, "stream", None)
        Stream.current.stream = self

    def __exit__(self, *exc):
        Stream.current.stream = self.outer

    def wait_event(self, event):
        self.work.put(event.reached.wait)

    def slowly(self, work):
        def run():
            time.sleep(Stream.delay_s)
            work()

        self.work.put(run)


class ExternalStream(Stream):
    def __init__(self, ptr, ordinal):
        self._start()


class Event:
    def __init__(self, *, block, disable_timing):
        assert block, "a thread that spins on an event takes a core"
        self.reached = threading.Event()

    def record(self, stream):
        stream.work.put(self.reached.set)

    def synchronize(self):
        self.reached.wait()


def alloc(nbytes, flags=0):
    return np.full(nbytes, 0xEE, np.uint8)


def pointer(memory, offset):
    return SimpleNamespace(ptr=memory.ctypes.data + offset, mem=memory)


class Kernel:
    def __init__(self, name):
        _, self.kind, unit = name.split("_")
        self.unit = int(unit)

    def __call__(self, grid, block, arguments):
        source, target, sources, targets, *rest = arguments
        assert grid[0] >= 1
        assert block[0] % 32 == 0
        sizes = np.full(int(rest[0]), int(rest[1]), np.int64) if self.kind == "short" else rest[0]
        assert len(sources) == len(targets) == len(sizes)
        for address, offsets in ((source, sources), (target, targets)):
            assert not ((int(address) + offsets) % self.unit).any(), "misaligned"

        def move():
            for a, b, n in zip(sources, targets, sizes, strict=True):
                ctypes.memmove(int(target) + int(b), int(source) + int(a), int(n) * self.unit)

        Stream.current.stream.slowly(move)


def memcpy_async(target, source, nbytes, kind, stream):
    Stream.current.stream.slowly(lambda: ctypes.memmove(target, source, nbytes))


def make():
    """A module that looks like ``cupy``, with its streams on the side to be stopped."""
    streams = []

    def opened(kind):
        def open_(*args, **kwargs):
            streams.append(kind(*args, **kwargs))
            return streams[-1]

        return open_

    cuda = SimpleNamespace(
        Device=Device,
        Stream=opened(Stream),
        ExternalStream=opened(ExternalStream),
        Event=Event,
        Memory=alloc,
        MemoryPointer=pointer,
        PinnedMemory=alloc,
        PinnedMemoryPointer=pointer,
        get_current_stream=lambda: Stream.current.stream,
        runtime=SimpleNamespace(
            memcpyAsync=memcpy_async, memcpyDefault=4, CUDARuntimeError=FakeError
        ),
    )

    def stop():
        for stream in streams:
            stream.work.put(None)
            stream.thread.join()

    return SimpleNamespace(
        cuda=cuda,
        asarray=np.array,
        RawModule=lambda code, options: SimpleNamespace(get_function=Kernel),
        stop=stop,
    )
