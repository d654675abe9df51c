"""The post of one node: letters between its actors, and messages to and from its links.

Answers asks, tells watchers, and counts what could not be delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import Any

from dvrt.actors import envelope
from dvrt.actors.actor import Context
from dvrt.actors.asks import Asks
from dvrt.actors.cell import Cell, Letter, Origin
from dvrt.actors.envelope import Envelope, Kind
from dvrt.actors.limits import Counters, NodeLimits
from dvrt.actors.link import Link
from dvrt.actors.peers import Peers
from dvrt.actors.ref import ActorRef
from dvrt.actors.watches import Watch, WatchCallback, Watches
from dvrt.buffers import MemoryKind, Region
from dvrt.errors import (
    ActorGone,
    AskTimeout,
    DvrtError,
    OutOfMemory,
    TransferTimeout,
    WireError,
)
from dvrt.wire import Message, decode, encode

_log = logging.getLogger("dvrt.actors")


class Post:
    """Delivers for the node ``name``, whose actors are ``cells``.

    ``tell``, ``tell_nowait`` and ``ask`` do what ActorRef's methods of these names promise.
    """

    def __init__(
        self, name: str, cells: dict[str, Cell], *, limits: NodeLimits, strict: bool
    ) -> None:
        self.counters = Counters()
        self.asks = Asks()
        self.watches = Watches()
        self._name, self._cells = name, cells
        self._limits, self._strict = limits, strict
        self._address = ""
        self._peers: Peers

    def open(self, address: str, peers: Peers) -> None:
        """Deliver from now on: ``address`` is this node's, ``peers`` are the links to others."""
        self._address, self._peers = address, peers

    def ref(self, node_address: str, name: str) -> ActorRef:
        return ActorRef(self, node_address, name)

    async def tell(
        self,
        ref: ActorRef,
        message: object,
        regions: tuple[Any, ...],
        sender: ActorRef | None,
        deadline_s: float | None,
    ) -> None:
        limit_s = self._limits.tell_s if deadline_s is None else deadline_s
        if ref.node_address == self._address:
            await self._offer(ref, self._letter(message, regions, sender, None), limit_s)
            return
        header, parts = self._pack(Kind.TELL, ref, message, regions, sender)
        await self._peers.link(ref.node_address).send(header, parts, limit_s)

    def tell_nowait(
        self, ref: ActorRef, message: object, regions: tuple[Any, ...], sender: ActorRef | None
    ) -> None:
        if ref.node_address != self._address:
            header, parts = self._pack(Kind.TELL, ref, message, regions, sender)
            self._peers.link(ref.node_address).send_nowait(header, parts)
            return
        letter = self._letter(message, regions, sender, None)
        if not self._cell(ref).offer_nowait(letter):
            raise OutOfMemory(f"the mailbox of {ref}", needed_bytes=letter.nbytes, free_bytes=0)

    async def ask(
        self,
        ref: ActorRef,
        message: object,
        regions: tuple[Any, ...],
        sender: ActorRef | None,
        deadline_s: float,
    ) -> Message:
        with self.asks.opened(ref.node_address, str(ref), deadline_s) as (number, future):
            try:
                if ref.node_address == self._address:
                    letter = self._letter(message, regions, sender, Origin(number))
                    await self._offer(ref, letter, deadline_s)
                else:
                    header, parts = self._pack(Kind.ASK, ref, message, regions, sender, number)
                    await self._peers.link(ref.node_address).send(header, parts, deadline_s)
            except TransferTimeout as error:
                raise AskTimeout(f"{ref} was not reached within {deadline_s:g} s") from error
            return await future  # type: ignore[return-value]

    def watch(self, ref: ActorRef, callback: WatchCallback) -> Watch:
        """What ``Node.watch`` promises."""
        watch = self.watches.add(ref, callback)
        try:
            if ref.node_address == self._address:
                self._cell(ref)
            else:
                header = envelope.pack(Kind.WATCH, ref.name)
                self._peers.link(ref.node_address).send_nowait(header, beyond_limit=True)
        except ActorGone as error:
            self.watches.tell(ref, str(error))
        return watch

    def receive(
        self, link: Link, header: bytes, attachments: list[bytearray]
    ) -> asyncio.Future[bool] | None:
        """Take what a link has received; a future while there is no room for it."""
        try:
            note = envelope.unpack(header)
        except WireError as error:
            self._undecodable(link, error)
            return None
        if note.kind is Kind.TELL or note.kind is Kind.ASK:
            return self._deliver(link, note, attachments)
        if note.kind is Kind.ANSWER or note.kind is Kind.FAILURE:
            self._answered(link, note)
        elif note.kind is Kind.WATCH:
            self._watched(link, note.target)
        elif note.kind is Kind.ENDED:
            self._ended_there(link, note)
        elif note.kind is Kind.BEAT:
            self.send_sign(link, Kind.ECHO)
        return None

    def _deliver(
        self, link: Link, note: Envelope, attachments: list[bytearray]
    ) -> asyncio.Future[bool] | None:
        origin = Origin(note.ask, link) if note.kind is Kind.ASK else None
        try:
            cell = self._cell(self.ref(self._address, note.target))
            message = decode(note.body)
        except ActorGone as error:
            self.counters.undeliverable += 1
            self._return(origin, error)
            return None
        except WireError as error:
            self._undecodable(link, error)
            self._return(origin, error)
            return None
        sender = self.ref(link.address, note.sender) if note.sender else None
        nbytes = len(note.body) + sum([len(each) for each in attachments])
        letter = Letter(message, Context(sender, attachments), origin, nbytes)
        waiting = cell.deliver(letter)
        if waiting is not None:
            waiting.add_done_callback(partial(self._returned, cell, letter))
        return waiting

    def _returned(self, cell: Cell, letter: Letter, waiting: asyncio.Future[bool]) -> None:
        """A letter for which there was no room, and then no actor."""
        if waiting.cancelled() or not waiting.result():
            self.counters.dropped += 1
            self._return(letter.origin, ActorGone(f"actor {cell.name} has ended"))

    def _undecodable(self, link: Link, error: WireError) -> None:
        self.counters.undecodable += 1
        _log.warning("%s got from %s what it cannot read: %s", self._name, link.address, error)

    def _answered(self, link: Link, note: Envelope) -> None:
        answer: object
        try:
            is_error = note.kind is Kind.FAILURE
            answer = envelope.unpack_error(note.body) if is_error else decode(note.body)
        except WireError as error:
            self._undecodable(link, error)
            answer = error
        self._settle(note.ask, answer)

    def _watched(self, link: Link, name: str) -> None:
        cell = self._cells.get(name)
        if cell is None:
            self._send_ended(link, name, f"no actor {name} at {self._address}")
        else:
            cell.remote_watchers[link] = None

    def _ended_there(self, link: Link, note: Envelope) -> None:
        try:
            reason = str(envelope.unpack_error(note.body))
        except WireError as error:
            self._undecodable(link, error)
            reason = "it ended, and the reason cannot be read"
        self.watches.tell(self.ref(link.address, note.sender), reason)

    def lost(self, node_address: str, reason: str) -> None:
        self.asks.lose(node_address, reason)
        self.watches.tell_all_of(node_address, f"its node is gone: {reason}")
        for cell in self._cells.values():
            for link in [link for link in cell.remote_watchers if link.end_reason is not None]:
                del cell.remote_watchers[link]

    def _cell(self, ref: ActorRef) -> Cell:
        cell = self._cells.get(ref.name)
        if cell is None or cell.is_ending:
            raise ActorGone(f"there is no actor {ref}")
        return cell

    def _letter(
        self,
        message: object,
        regions: tuple[Any, ...],
        sender: ActorRef | None,
        origin: Origin | None,
    ) -> Letter:
        """A message for an actor of this node; attachments are copies, as from elsewhere."""
        self.counters.local += 1
        parts = [bytearray(region.view()) for region in _regions(regions, self._limits)]
        made: Any = decode(encode(message)) if self._strict else message
        nbytes = sum([len(part) for part in parts])
        return Letter(made, Context(sender, parts), origin, nbytes)

    def send_sign(self, link: Link, kind: Kind) -> None:
        """A sign of life, unless something else is on its way: that is one, too."""
        if link.is_idle:
            with contextlib.suppress(ActorGone):
                link.send_nowait(_SIGNS[kind])

    async def _offer(self, ref: ActorRef, letter: Letter, limit_s: float) -> None:
        waiting = self._cell(ref).offer(letter)
        if waiting is None:
            return
        try:
            async with asyncio.timeout(limit_s):
                is_taken = await waiting
        except TimeoutError:
            text = f"the mailbox of {ref} had no room for {limit_s:g} s"
            raise TransferTimeout(text) from None
        if not is_taken:
            raise ActorGone(f"{ref} has ended")

    def _pack(
        self,
        kind: Kind,
        ref: ActorRef,
        message: object,
        regions: tuple[Any, ...],
        sender: ActorRef | None,
        ask: int = 0,
    ) -> tuple[bytes, tuple[Region, ...]]:
        if sender is not None and sender.node_address != self._address:
            raise ValueError(f"{sender} is not of this node; it cannot send from here")
        name = sender.name if sender is not None else ""
        header = envelope.pack(kind, ref.name, name, ask, encode(message))
        return header, _regions(regions, self._limits)

    async def reply(self, origin: Origin, answer: object) -> None:
        if origin.link is None:
            self._settle(origin.ask, self._as_if_sent(answer))
            return
        try:
            await origin.link.send(_pack_answer(origin.ask, answer), (), self._limits.tell_s)
        except (ActorGone, TransferTimeout):
            self.counters.dropped += 1

    def _return(self, origin: Origin | None, error: DvrtError) -> None:
        """Answer an ask that no actor will answer; without waiting."""
        if origin is None:
            return
        if origin.link is None:
            self._settle(origin.ask, error)
            return
        with contextlib.suppress(ActorGone):
            origin.link.send_nowait(_pack_answer(origin.ask, error), beyond_limit=True)

    def _as_if_sent(self, answer: object) -> object:
        if not self._strict:
            return answer
        if isinstance(answer, DvrtError):
            return envelope.unpack_error(envelope.pack_error(answer))
        return decode(encode(answer))

    def _settle(self, ask: int, answer: object) -> None:
        if isinstance(answer, Exception):
            is_awaited = self.asks.fail(ask, answer)
        else:
            is_awaited = self.asks.answer(ask, answer)
        self.counters.late_answers += not is_awaited

    def cell_ended(self, cell: Cell, reason: str, left: list[Letter]) -> None:
        del self._cells[cell.name]
        self.counters.dropped += len(left)
        for letter in left:
            self._return(letter.origin, ActorGone(f"actor {cell.name} has ended: {reason}"))
        for link in cell.remote_watchers:
            self._send_ended(link, cell.name, reason)
        self.watches.tell(cell.actor.me, reason)

    def _send_ended(self, link: Link, name: str, reason: str) -> None:
        body = envelope.pack_error(ActorGone(reason))
        with contextlib.suppress(ActorGone):
            link.send_nowait(envelope.pack(Kind.ENDED, "", name, body=body), beyond_limit=True)


_SIGNS = {kind: envelope.pack(kind, "") for kind in (Kind.BEAT, Kind.ECHO)}


def _pack_answer(ask: int, answer: object) -> bytes:
    if isinstance(answer, DvrtError):
        return envelope.pack(Kind.FAILURE, "", ask=ask, body=envelope.pack_error(answer))
    return envelope.pack(Kind.ANSWER, "", ask=ask, body=encode(answer))


def _regions(sources: tuple[Any, ...], limits: NodeLimits) -> tuple[Region, ...]:
    """Raises WireError beyond the limits and TypeError for memory that the host cannot read."""
    if not sources:
        return ()
    regions = tuple([Region.of(source) for source in sources])
    total = sum([region.nbytes for region in regions])
    if len(regions) > limits.message_regions or total > limits.message_region_bytes:
        raise WireError(
            f"{len(regions)} regions of {total} bytes in one message; limits "
            f"{limits.message_regions} and {limits.message_region_bytes}"
        )
    if any(region.kind is MemoryKind.CUDA for region in regions):
        raise TypeError("messages carry host memory; copy the region to staging first")
    return regions
