"""What a stage that swaps measured of itself, for whoever judges whether swapping pays."""

from __future__ import annotations

from dvrt.wire import message


@message("swap.figures")
class SwapFigures:
    """``step_s`` is a decode step's time, ``bandwidth`` what swap-ins reach, in bytes a second:
    of a trial at load time at first, of the work itself later. ``waited_s`` is how long compute
    stood still for swap-ins.
    """

    device_slots: int
    batch_size: int
    entry_bytes: int
    max_context: int
    host_kv_bytes: int
    step_s: float
    bandwidth: float
    in_bytes: int = 0
    out_bytes: int = 0
    waited_s: float = 0.0
    steps: int = 0
