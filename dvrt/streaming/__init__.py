"""How KV caches move: the paper's primitives, on any transport and any device.

flush, fetch            one contiguous chunk, to here or there
scatter, gather         a non-contiguous box as few contiguous moves
stream_out, stream_in   what two set-ups imply: peers found, layers, rows and heads re-cut
"""

from dvrt.streaming.batch import Batch as Batch
from dvrt.streaming.batch import Spot as Spot
from dvrt.streaming.behind import Behind as Behind
from dvrt.streaming.cache import Cache as Cache
from dvrt.streaming.contiguous import fetch as fetch
from dvrt.streaming.contiguous import flush as flush
from dvrt.streaming.greeting import open_link as open_link
from dvrt.streaming.inflow import Arrived as Arrived
from dvrt.streaming.inflow import Inflow as Inflow
from dvrt.streaming.inflow import open_inflow as open_inflow
from dvrt.streaming.journal import Counters as Counters
from dvrt.streaming.journal import Event as Event
from dvrt.streaming.journal import Journal as Journal
from dvrt.streaming.kit import Kit as Kit
from dvrt.streaming.lineage import Lineage as Lineage
from dvrt.streaming.link import Link as Link
from dvrt.streaming.messages import Grouping as Grouping
from dvrt.streaming.messages import Setup as Setup
from dvrt.streaming.modes import LayerGate as LayerGate
from dvrt.streaming.modes import Mode as Mode
from dvrt.streaming.outflow import Outflow as Outflow
from dvrt.streaming.outflow import open_outflow as open_outflow
from dvrt.streaming.region import gather as gather
from dvrt.streaming.region import scatter as scatter
from dvrt.streaming.setups import Setups as Setups
from dvrt.streaming.stream import stream_in as stream_in
from dvrt.streaming.stream import stream_out as stream_out
