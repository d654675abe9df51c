"""Channels that move headers and regions of memory; each way to do so is imported when chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dvrt.transport.base import MAX_HEADER_BYTES as MAX_HEADER_BYTES
from dvrt.transport.base import MAX_REGIONS as MAX_REGIONS
from dvrt.transport.base import Channel as Channel
from dvrt.transport.base import ChannelHandler as ChannelHandler
from dvrt.transport.base import ChannelStatistics as ChannelStatistics
from dvrt.transport.base import Incoming as Incoming
from dvrt.transport.base import Listener as Listener
from dvrt.transport.base import Transport as Transport
from dvrt.transport.registry import connect as connect
from dvrt.transport.registry import get_transport as get_transport
from dvrt.transport.registry import known_schemes as known_schemes
from dvrt.transport.registry import listen as listen

if TYPE_CHECKING:
    from dvrt.transport.faults import Direction as Direction
    from dvrt.transport.faults import Fault as Fault
    from dvrt.transport.faults import FaultKind as FaultKind
    from dvrt.transport.faults import FaultPlan as FaultPlan
    from dvrt.transport.faults import RandomFaults as RandomFaults
    from dvrt.transport.faulty import FaultyTransport as FaultyTransport

_LATE = {
    "Direction": "dvrt.transport.faults",
    "Fault": "dvrt.transport.faults",
    "FaultKind": "dvrt.transport.faults",
    "FaultPlan": "dvrt.transport.faults",
    "RandomFaults": "dvrt.transport.faults",
    "FaultyTransport": "dvrt.transport.faulty",
}


def __getattr__(name: str) -> Any:
    """Load what makes faults on first use: few need it."""
    if name not in _LATE:
        raise AttributeError(f"module 'dvrt.transport' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)
