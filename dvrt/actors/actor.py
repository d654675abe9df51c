"""Actors: one mailbox, one task, messages one at a time and in order.

Knows nothing of sockets or processes. Actors never ask in circles: if A waits for an answer of B,
B must not, directly or through others, wait for one of A; use ``tell`` on the way back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dvrt.actors.ref import ActorRef
from dvrt.wire import Message

if TYPE_CHECKING:
    from dvrt.actors.node import Node


@dataclass(frozen=True, slots=True)
class Context:
    """What came beside a message: who sent it, if it is an actor, and its regions' bytes.

    The attachments belong to the receiver; nobody else touches them.
    """

    sender: ActorRef | None = None
    attachments: list[bytearray] = field(default_factory=list)


class Actor(ABC):
    """Subclass and implement ``receive``; ``node`` and ``me`` are there from ``on_start`` on.

    An exception ends the actor: whoever watches it is told, and asks in its mailbox get ActorGone.
    One exception to that: a DvrtError raised while an *ask* is handled is the answer to that ask,
    and the actor lives on.
    """

    node: Node
    me: ActorRef

    async def on_start(self) -> None:  # noqa: B027
        """Called once, before the first message."""

    async def on_stop(self, reason: str) -> None:  # noqa: B027
        """Called once, after the last message, also when ``on_start`` or ``receive`` raised.

        Has the node's ``stop_s`` to finish and is cancelled then.
        """

    def on_abort(self) -> None:  # noqa: B027
        """Called in place of ``on_stop`` when the node ends as if its process were killed.

        Drops, without waiting, tasks and threads that would end with the process. ``on_start`` may
        not have run.
        """

    def take_at_once(self, message: Message, context: Context) -> bool:
        """Handle a message of another node in the very turn in which it came, without waiting.

        Only asked when the actor has nothing in hand and nothing in its mailbox, for what was
        told; an exception ends the actor. False leaves the message to ``receive``.
        """
        return False

    @abstractmethod
    async def receive(self, message: Message, context: Context) -> Message | None:
        """Handle one message. What is returned answers an ask; None answers it with Acknowledged.

        The next message waits until this returns, so what takes long belongs in a task of its own.
        """

    def stop(self, reason: str) -> None:
        """End after the message that is being handled; the rest of the mailbox is dropped."""
        self.node.end(self.me.name, reason)

    def fail(self, error: BaseException) -> None:
        """End as if ``receive`` had raised this error; for the tasks that an actor owns."""
        self.node.end(self.me.name, error)
