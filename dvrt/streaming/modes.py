"""The four modes of the paper's ablation, and the gate through which computed layers leave.

    NAIVE       a copy and a transfer per contiguous run, after the compute
    BUFFERED    gathered into staging, one transfer per parcel, after the compute
    LAYERED     layer l travels while layer l + 1 computes
    OVERLAPPED  the same, and token step i travels behind the compute of step i + 1

The receiver gets the same bytes in all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum

from dvrt.cuda.fences import Fence


class Mode(Enum):
    NAIVE = "naive"
    BUFFERED = "buffered"
    LAYERED = "layered"
    OVERLAPPED = "overlapped"


class LayerGate:
    """Opens layer by layer, in order. ``open`` may be called from any thread, once per layer.

    The layers are numbered as the whole model numbers them.
    """

    def __init__(self, first_layer: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = first_layer
        self._fences: list[Fence] = []
        self._moved = asyncio.Event()

    def open(self, layer: int, fence: Fence | None = None) -> None:
        """Layer ``layer`` is computed once ``fence`` is done; at once without one."""
        self._loop.call_soon_threadsafe(self._open, layer, fence)

    def _open(self, layer: int, fence: Fence | None) -> None:
        self._next = max(self._next, layer + 1)
        if fence is not None:
            self._fences = [f for f in self._fences if not f.is_done or f.error] + [fence]
        self._moved.set()

    async def wait(self, layer: int) -> Sequence[Fence]:
        """Return when the layer is open, with what its bytes still wait for."""
        while self._next <= layer:
            self._moved.clear()
            await self._moved.wait()
        return tuple(self._fences)
