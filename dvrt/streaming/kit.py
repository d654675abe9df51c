"""What every primitive works with: a device, bounded staging, counters and an event log."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from dvrt.buffers import MemoryKind
from dvrt.cuda.device import Device
from dvrt.cuda.pinned import StagingPool
from dvrt.streaming.journal import Counters, Event, Journal

DEFAULT_STAGING_BYTES = 256 << 20
DEFAULT_MAX_PARCEL_BYTES = 16 << 20


class Kit:
    """One per process and device. The device stays the caller's; ``aclose`` frees the staging."""

    def __init__(
        self,
        device: Device,
        *,
        staging_bytes: int = DEFAULT_STAGING_BYTES,
        max_parcel_bytes: int = DEFAULT_MAX_PARCEL_BYTES,
        is_verified: bool = True,
    ) -> None:
        """``is_verified``: whether bytes carry digests; then none are taken without.

        Both ends of a link have it alike; ``open_link`` names it where they differ.

        Half of the staging is for what leaves, half for what arrives: so two processes whose
        staging is full of what they want to send each other can still receive.
        """
        self.device = device
        self.staging, self.landing = (
            StagingPool(
                device.alloc_host,
                device.free,
                limit_bytes=staging_bytes // 2,
                name=f"{device.name} {name}",
            )
            for name in ("staging", "landing")
        )
        self.max_parcel_bytes = min(max_parcel_bytes, staging_bytes // 8)
        self._promised_bytes = 0
        self.is_verified = is_verified
        self.counters = Counters()
        self.journal = Journal()

    @property
    def reaches_device(self) -> bool:
        """Whether a transport may touch device memory directly: where it is host memory."""
        return self.device.kind is not MemoryKind.CUDA

    def promise(self, wanted_bytes: int) -> int:
        """How much one more link may have in the landing before anybody has taken it.

        Half of what no other link was promised, so that parcels of streams that nobody takes fill
        their own link's share, and never less than a parcel. ``take_back`` must follow.
        """
        free_bytes = self.landing.statistics().limit_bytes - self._promised_bytes
        promised = max(min(wanted_bytes, free_bytes // 2), min(wanted_bytes, self.max_parcel_bytes))
        self._promised_bytes += promised
        return promised

    def take_back(self, promised_bytes: int) -> None:
        """The link is over."""
        self._promised_bytes -= promised_bytes

    def record(
        self, kind: str, stream: str, step: int, *, index: int = -1, layer: int = -1
    ) -> None:
        at = asyncio.get_running_loop().time()
        self.journal.record(
            Event(at=at, kind=kind, stream=stream, step=step, index=index, layer=layer)
        )

    async def aclose(self) -> None:
        self.staging.close()
        self.landing.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
