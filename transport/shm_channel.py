"""A channel over a Unix socket and two arenas: the socket tells, the arenas hold.

Regions beyond INLINE_BYTES are packed into the sender's arena. A message that fits the
arena is one extent, told of piece by piece, so that the receiver copies one piece while the
sender copies the next, and may borrow the whole; a larger one is an extent a piece.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence

from dvrt.buffers import Region
from dvrt.errors import Corrupted, PeerLost
from dvrt.transport.arena import Arena, PeerArena
from dvrt.transport.base import Borrowed
from dvrt.transport.bell import Bell
from dvrt.transport.framing import pack_head
from dvrt.transport.packing import Parts, Pieces, pack, unpack
from dvrt.transport.polling import Polling
from dvrt.transport.releases import Releases
from dvrt.transport.socket_channel import SocketChannel
from dvrt.transport.vector import Vector

INLINE_BYTES = 32 << 10
"""Regions up to this sum travel over the socket."""
PIECE_BYTES = 4 << 20
_PIECE = struct.Struct("!QQ")


class ShmChannel(SocketChannel):
    """Owns the socket, both mappings and the bell."""

    def __init__(
        self, sock: socket.socket, peer: str, arena: Arena, peer_arena: PeerArena, bell: Bell
    ) -> None:
        super().__init__(sock, peer)
        self._arena, self._peer_arena, self._bell = arena, peer_arena, bell
        self._piece_bytes = min(PIECE_BYTES, arena.capacity // 2)
        self._releases = Releases()
        self._polling = Polling()
        self._is_unmapped = False

    def _is_inline(self, sizes: Sequence[int]) -> bool:
        return sum(sizes) <= INLINE_BYTES

    async def _send(
        self, header: bytes, regions: tuple[Region, ...], sizes: list[int], until: float | None
    ) -> None:
        total = sum(sizes)
        if total <= INLINE_BYTES:
            await super()._send(header, regions, sizes, until)
            return
        self._ensure_peer()
        head = pack_head(header, sizes)
        if total > self._piece_bytes:
            await self._send_pieces(head, Pieces(regions, sizes), until)
            return
        offset = await self._allocate(total, until)
        pack(regions, sizes, self._arena.bytes[offset : offset + total])
        await self._write_all((head + _PIECE.pack(offset, total),), until)

    async def _send_pieces(self, head: bytes, sources: Pieces, until: float | None) -> None:
        is_whole = sources.nbytes <= self._arena.capacity
        offset = await self._allocate(sources.nbytes, until) if is_whole else 0
        while sources.nbytes:
            size = sources.size(self._piece_bytes)
            if not is_whole:
                offset = await self._allocate(size, until)
            sources.copy_to(self._arena.bytes[offset : offset + size])
            self._is_mid_message = True
            await self._write_all((head + _PIECE.pack(offset, size),), until)
            head = b""
            offset += size
            await asyncio.sleep(0)
            self._ensure_usable()
        self._is_mid_message = False

    async def _allocate(self, size: int, until: float | None) -> int:
        """An extent of the own arena, as soon as the peer has let go of enough."""
        try:
            while True:
                self._arena.reclaim(self._peer_arena.releases)
                offset = self._arena.allocate(size)
                if offset is not None:
                    return offset
                self._ensure_peer()
                if self._bell.has_ended():
                    raise PeerLost(f"{self.peer} ended the connection")
                self._bell.listen(self._send_waiter.wake)
                await self._send_waiter.wait(until)
                self._ensure_usable()
        finally:
            self._bell.mute()

    async def _fill(self, regions: tuple[Region, ...], until: float | None) -> None:
        sizes = [region.nbytes for region in regions]
        if self._is_inline(sizes):
            await super()._fill(regions, until)
            return
        total, number = sum(sizes), self._releases.take()
        self._polling.came()
        offset, size = await self._next_piece(total, until)
        if size < total:
            await self._fill_pieces(Pieces(regions, sizes), (offset, size), number, until)
            return
        with self._peer_arena.extent(offset, size) as piece:
            unpack(piece, regions, sizes)
        self._release(number)

    async def _fill_pieces(
        self, targets: Pieces, told: tuple[int, int], number: int, until: float | None
    ) -> None:
        """A message of several pieces, the first of which was ``told`` of and has this number."""
        is_whole = targets.nbytes <= self._peer_arena.capacity
        while True:
            with self._peer_arena.extent(*told) as piece:
                targets.copy_from(piece)
            if not targets.nbytes:
                break
            if not is_whole:
                self._release(number)
                number = self._releases.take()
            await asyncio.sleep(0)
            self._ensure_usable()
            told = await self._next_piece(targets.nbytes, until)
        self._release(number)

    async def _next_piece(self, at_most: int, until: float | None) -> tuple[int, int]:
        if len(self._staging) >= _PIECE.size:
            told = self._staging.take(_PIECE.size)
        else:
            told = bytearray(_PIECE.size)
            await self._read(Vector([memoryview(told)]), until)
        offset, size = _PIECE.unpack(told)
        if not 0 < size <= at_most:
            raise Corrupted("size of a piece", expected=f"1 to {at_most}", got=size)
        return offset, size

    async def _borrow(self, sizes: tuple[int, ...], until: float | None) -> Borrowed:
        total = sum(sizes)
        if self._is_inline(sizes) or total > self._peer_arena.capacity:
            return await super()._borrow(sizes, until)
        number = self._releases.take()
        self._polling.came()
        start, size = await self._next_piece(total, until)
        while size < total:
            offset, more = await self._next_piece(total - size, until)
            if offset != start + size:
                raise Corrupted("offset of a piece", expected=start + size, got=offset)
            size += more
        extent = self._peer_arena.extent(start, total)
        return Borrowed(lambda: Parts(extent, sizes), lambda: self._release(number))

    def _release(self, number: int) -> None:
        """The extent may be written to again; the peer is told when it is its turn."""
        count = self._releases.give(number)
        if count and not self._is_unmapped:
            self._arena.count_releases(count)
            self._bell.ring_peer()

    def _drop(self) -> None:
        super()._drop()
        self._is_unmapped = True
        self._polling.close()
        self._bell.close()
        self._arena.close()
        self._peer_arena.close()
