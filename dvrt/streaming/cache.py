"""A worker's KV memory of one microbatch: bytes on a device, and the layout of them."""

from __future__ import annotations

from dataclasses import dataclass

from dvrt.buffers import Region
from dvrt.kv.layout import Layout
from dvrt.kv.regions import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """``region`` holds what ``layout`` describes; ``table`` has each row's pages where paged.

    The table is read when a transfer is prepared; later changes do not move it. Raises ValueError
    where the region is too small.
    """

    region: Region
    layout: Layout
    table: Table | None = None

    def __post_init__(self) -> None:
        if self.region.nbytes < self.layout.nbytes:
            raise ValueError(
                f"{self.layout.nbytes} bytes of KV in a region of {self.region.nbytes}"
            )
