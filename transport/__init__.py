"""Channels that move headers and regions of memory; each way to do so is imported when chosen."""

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
