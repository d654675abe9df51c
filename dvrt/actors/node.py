"""A node: the actors of one process (or of a stand-in for one) and its links to other nodes.

Owns their lives. Post delivers between them, Peers keeps the links.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import Self

import dvrt.transport
from dvrt.actors.actor import Actor
from dvrt.actors.cell import Cell
from dvrt.actors.envelope import Kind
from dvrt.actors.limits import NodeLimits, NodeStatistics
from dvrt.actors.peers import Network, Peers
from dvrt.actors.post import Post
from dvrt.actors.ref import ActorRef, check_name, split_ref
from dvrt.actors.watches import Watch, WatchCallback
from dvrt.errors import ActorGone, ConfigError
from dvrt.transport.handshake import Hello

_log = logging.getLogger("dvrt.actors")

household: ContextVar[dict[Node, None] | None] = ContextVar("household", default=None)
"""Where a node notes itself, so that whoever stands in for its process can end it abruptly."""
wiring: ContextVar[Callable[[str], Network] | None] = ContextVar("wiring", default=None)
"""Gives a node of this name its network, where that is not ``dvrt.transport``."""


class Node:
    """Actors by name, reachable at ``address``. An async context manager; belongs to one loop.

    ``address`` is where to listen (``tcp://127.0.0.1:0``, ``local://``); ``advertise_host``
    replaces the host in what peers are told, for a node that listens on every interface. All nodes
    of a cluster share ``secret``. ``strict`` sends messages between actors of this node through
    the wire format, too. ``network`` is a Transport to use instead of the one that each address
    names.
    """

    def __init__(
        self,
        *,
        name: str,
        secret: bytes,
        address: str = "tcp://127.0.0.1:0",
        advertise_host: str | None = None,
        incarnation: str | None = None,
        role: str = "node",
        limits: NodeLimits | None = None,
        strict: bool = False,
        network: Network | None = None,
    ) -> None:
        if not secret:
            raise ConfigError("secret: an empty secret proves nothing")
        self.name = name
        self.address = address
        self.incarnation = incarnation or secrets.token_hex(8)
        self.limits = limits or NodeLimits()
        self._advertise_host = advertise_host
        self._cells: dict[str, Cell] = {}
        self._is_open = False
        self._post = Post(name, self._cells, limits=self.limits, strict=strict)
        wire = wiring.get()
        self._peers = Peers(
            network=network or (wire(name) if wire is not None else dvrt.transport),
            hello=Hello(node=name, incarnation=self.incarnation, role=role, description={}),
            secret=secret,
            limits=self.limits,
            counters=self._post.counters,
            receive=self._post.receive,
            lost=self._post.lost,
        )

    async def __aenter__(self) -> Self:
        self.address = await self._peers.listen(self.address, self._advertise_host)
        self._post.open(self.address, self._peers)
        self._is_open = True
        notes = household.get()
        if notes is not None:
            notes[self] = None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop all actors, send what was told, say goodbye; no task and no file is left.

        Every step has a limit. Cancelled, it aborts. Not to be called by an actor of this node.
        """
        self._is_open = False
        try:
            await asyncio.gather(*(self.stop(name, "its node closes") for name in self._cells))
            await self._peers.aclose()
        except BaseException:
            self.abort()
            raise
        finally:
            self._post.asks.lose(None, "this node was closed")
            self._post.watches.clear()

    def abort(self) -> None:
        """End everything now, as if the process were killed: nobody is told, nothing is sent.

        Never waits; ``aclose`` afterwards waits for the tasks, which are ending.
        """
        self._is_open = False
        self._peers.abort()
        for cell in self._cells.values():
            cell.abort()
        self._post.asks.lose(None, "this node was aborted")
        self._post.watches.clear()

    # Actors of this node.

    def spawn(self, actor: Actor, *, name: str) -> ActorRef:
        """Start an actor. Raises ConfigError when the name is taken, ActorGone when closed."""
        if not self._is_open:
            raise ActorGone(f"node {self.name} is closed")
        if check_name(name) in self._cells:
            raise ConfigError(f"node {self.name} has an actor {name!r} already")
        actor.node, actor.me = self, self._post.ref(self.address, name)
        self._cells[name] = Cell(
            actor, limits=self.limits, reply=self._post.reply, ended=self._post.cell_ended
        )
        return actor.me

    def end(self, name: str, why: str | BaseException) -> None:
        """Have an actor end after its current message: stopped (a text) or failed (an error)."""
        cell = self._cells.get(name)
        if cell is not None:
            cell.end(why)

    async def stop(self, name: str, reason: str) -> None:
        """End an actor and wait until it has ended; harmless when it is not there.

        Takes ``stop_s`` for its last message and ``stop_s`` for ``on_stop`` at most.
        """
        cell = self._cells.get(name)
        if cell is None:
            return
        cell.end(reason)
        if cell.task is asyncio.current_task():
            return
        _, late = await asyncio.wait({cell.task}, timeout=3 * self.limits.stop_s)
        if late:
            _log.error("actor %s does not end, and is left to itself", name)

    # Actors anywhere.

    def ref(self, address: str) -> ActorRef:
        """The reference for ``scheme://node/name``. Raises ConfigError."""
        return self._post.ref(*split_ref(address))

    def watch(self, ref: ActorRef, callback: WatchCallback) -> Watch:
        """Call ``callback(ref, reason)`` once, when the actor ends or is out of reach.

        That is: it stops or fails, there is no such actor, its node ends, or the link breaks.
        Never called before this returns, nor after the watch was cancelled or the node closed.
        """
        return self._post.watch(ref, callback)

    # Whole nodes.

    def beat(self, node_address: str) -> None:
        """Have a peer answer that it is alive, if there is a link and nothing else to send."""
        link = self._peers.known(node_address)
        if link is not None:
            self._post.send_sign(link, Kind.BEAT)

    def heard_at(self, node_address: str) -> float | None:
        """When the peer was last heard, in the loop's time; None without a link to it."""
        return self._peers.heard_at(node_address)

    def fence(self, node_address: str, reason: str) -> None:
        """Cut a peer off for good: watchers are told, and this incarnation of it is refused."""
        self._peers.fence(node_address, reason)

    def cut(self, node_address: str, reason: str) -> None:
        """Break the links to a peer, as a network that fails would; both may connect anew."""
        self._peers.cut(node_address, reason)

    def statistics(self) -> NodeStatistics:
        return NodeStatistics(
            counters=replace(self._post.counters),
            asks=len(self._post.asks),
            watches=len(self._post.watches),
            strangers=self._peers.n_strangers,
            mailboxes={name: cell.statistics() for name, cell in self._cells.items()},
            outboxes=self._peers.statistics(),
        )

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        return f"<Node {self.name} at {self.address} {state}, {len(self._cells)} actors>"
