"""References to actors: values that can be compared, hashed, written down and talked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dvrt.errors import ConfigError
from dvrt.wire import Message

if TYPE_CHECKING:
    from dvrt.actors.post import Post

MAX_NAME_BYTES = 256


class ActorRef:
    """Where an actor is: ``address`` is ``tcp://host:port/name`` or ``local://node/name``.

    Two references are equal when they name the same actor. ``address``, or ``str(ref)``, travels
    in messages; ``node.ref(address)`` makes a reference of it again.
    """

    __slots__ = ("_post", "name", "node_address")

    def __init__(self, post: Post, node_address: str, name: str) -> None:
        self._post = post
        self.node_address = node_address
        self.name = name

    @property
    def address(self) -> str:
        return f"{self.node_address}/{self.name}"

    async def tell(
        self,
        message: object,
        *regions: Any,
        sender: ActorRef | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Send a message, at most once. Returns when it is on its way and regions may be reused.

        Does not suspend when there is room, which is the usual case. Otherwise waits until there
        is, ``deadline_s`` at most (the node's ``tell_s`` by default), then raises TransferTimeout.
        Raises ActorGone when it is known here that the actor is gone, WireError for what is no
        message or too large. Regions are anything that ``Region.of`` takes, in host memory.
        Cancelling it may leave the regions being read until the message is out or the link ends;
        it never harms the link.
        """
        await self._post.tell(self, message, regions, sender, deadline_s)

    def tell_nowait(self, message: object, *regions: Any, sender: ActorRef | None = None) -> None:
        """Send without ever waiting. Regions must stay unchanged for good.

        Raises OutOfMemory when there is no room, else what ``tell`` raises.
        """
        self._post.tell_nowait(self, message, regions, sender)

    async def ask(
        self,
        message: object,
        *regions: Any,
        deadline_s: float,
        sender: ActorRef | None = None,
    ) -> Message:
        """Send a message and wait for what the actor's ``receive`` returns.

        Raises AskTimeout after ``deadline_s``, ActorGone when the actor, its node or the link ends
        first, the DvrtError that ``receive`` raised, and what ``tell`` raises. Cancelling it
        forgets the answer.
        """
        return await self._post.ask(self, message, regions, sender, deadline_s)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorRef):
            return NotImplemented
        return self.name == other.name and self.node_address == other.node_address

    def __hash__(self) -> int:
        return hash((self.node_address, self.name))

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"<ActorRef {self}>"


def split_ref(text: str) -> tuple[str, str]:
    """Node address and actor name of ``scheme://node/name``. Raises ConfigError."""
    address, separator, name = text.rpartition("/")
    if not separator or "://" not in address or address.endswith("/") or not name:
        raise ConfigError(f"actor {text!r}: expected scheme://node/name")
    return address, check_name(name)


def check_name(name: str) -> str:
    """An actor's name, checked. Raises ConfigError."""
    if not name or "/" in name or len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigError(
            f"actor name {name[:64]!r}: expected 1 to {MAX_NAME_BYTES} bytes without a slash"
        )
    return name
