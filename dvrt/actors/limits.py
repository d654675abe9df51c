"""What a node holds and how long it waits, in named numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLimits:
    """Bounds of one node.

    A full mailbox stops the reading of the link whose message has no room in it; a full outbox
    makes ``tell`` wait. Answers and heartbeats share the link with everything else, so mailboxes
    should be larger than what is ever in flight.
    """

    mailbox_messages: int = 1024
    mailbox_bytes: int = 256 << 20
    outbox_messages: int = 1024
    outbox_bytes: int = 256 << 20
    message_regions: int = 4096
    message_region_bytes: int = 1 << 30
    strangers: int = 256
    """Channels that have not proved themselves yet; further ones are closed at once."""
    fenced: int = 4096
    """Incarnations that are remembered as shut out."""
    connect_s: float = 5.0
    greet_s: float = 5.0
    tell_s: float = 10.0
    """How long ``tell`` waits for room unless it says otherwise, and an answer to be sent."""
    transfer_s: float = 30.0
    """How long one message may take on the wire before its link is given up."""
    unacknowledged_s: float = 10.0
    """How long what was sent may be on its way without a byte more being taken by the peer's host
    before the link is given up: a network may lose what passes between two nodes whom others hear.
    A peer that reads nothing for so long, once its host holds no more, is given up as well."""
    stop_s: float = 5.0
    """How long an actor may take for its last message, and again for ``on_stop``."""
    flush_s: float = 2.0
    """How long a closing node goes on sending what was told before, on links that are open."""


@dataclass(slots=True)
class Counters:
    """What happened at one node since it was made."""

    sent: int = 0
    received: int = 0
    local: int = 0
    undecodable: int = 0
    """Messages of known peers that could not be decoded."""
    undeliverable: int = 0
    """Messages for actors that were not there."""
    dropped: int = 0
    """Messages that were accepted here and lost with a link or left in an actor's mailbox."""
    late_answers: int = 0
    """Answers to asks that nobody waits for any more."""
    refused: int = 0
    """Channels that did not prove themselves, or were one too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """``highest`` is the largest number of items that were held at once."""

    items: int
    nbytes: int
    highest: int
    taken: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatistics:
    """Counters, and the state of every queue: mailboxes by actor, outboxes by peer address."""

    counters: Counters
    asks: int
    watches: int
    strangers: int
    mailboxes: dict[str, QueueStatistics] = field(default_factory=dict)
    outboxes: dict[str, QueueStatistics] = field(default_factory=dict)
