"""``file:///path``: a channel to a disk. What is sent is appended, what is received was sent once.

``flush`` makes all that was sent durable. A crash may tear the last records; whoever opens the
file next goes on after the last whole one. Disk work runs in threads, so a cancelled transfer's
memory is in use until ``quiet`` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

from dvrt.buffers import Region
from dvrt.errors import ConfigError, ConnectFailed, Corrupted, PeerLost, TransferTimeout
from dvrt.transport.base import Channel, ChannelHandler, Listener, Transport
from dvrt.transport.framing import check_limits
from dvrt.transport.guarded import GuardedChannel
from dvrt.transport.packing import views_of
from dvrt.transport.records import Record, check_record, pack_record, read_record, whole_until
from dvrt.transport.registry import split_address
from dvrt.transport.vector import Vector

_VECTOR_COUNT = 512
T = TypeVar("T")


class FileChannel(GuardedChannel):
    """Owns ``fd``, locked for this process; ``receive`` starts at the first record.

    At the end of the log ``receive`` raises PeerLost and breaks nothing: what is sent later can
    be received later. ``torn_bytes`` is what a crash left behind and was cut off at opening.
    """

    def __init__(self, fd: int, peer: str, end: int, torn_bytes: int) -> None:
        super().__init__(peer)
        self.torn_bytes = torn_bytes
        self._fd = fd
        self._end = self._durable_end = end
        self._position = 0
        self._record: Record | None = None
        self._work: asyncio.Future[object] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def durable_bytes(self) -> int:
        """How much of the log survives the loss of power."""
        return self._durable_end
