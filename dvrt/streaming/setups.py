"""What both ends of a transfer know before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from dvrt.kv.layout import Layout
from dvrt.kv.plan import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Setups:
    """Both sides of a transfer. ``wire`` is the target's layout: its order is the packed order."""

    source: Side
    target: Side
    wire: Layout
