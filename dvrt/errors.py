"""Every error dvrt raises on purpose, in one tree.

DvrtError
├── ConfigError(ValueError)        names the key and the value
├── ModelError                     a checkpoint that cannot be served; says which and why
├── WireError                      bytes that are not a message of ours
├── TransportError                 class attribute ``retriable`` says whether trying again can help
│   ├── ConnectFailed              retriable: nobody there yet, or the handshake was refused
│   ├── PeerLost                   retriable: the outside broke it; ``__cause__`` tells how
│   ├── ChannelClosed              your own code closed it
│   ├── ChannelBusy                two tasks used one direction at once: a bug in the caller
│   ├── TransferTimeout            retriable: the deadline passed
│   └── Corrupted                  checksum, generation or version differs; fields expected, got
├── OutOfMemory                    a bounded pool is empty; fields needed_bytes, free_bytes
├── StaleLease                     the slot was given to somebody else since
├── ProtocolError                  a peer or actor broke the rules of the log; never ignored
├── ActorError                     AskTimeout, ActorGone
├── StageFailed                    a worker ended; fields worker, reason
└── RequestRejected                the caller's fault or overload: answered, never dropped
    ├── Overloaded                 429; field retry_after_s
    └── Unavailable                503; the cluster cannot serve now
"""

from __future__ import annotations

from typing import ClassVar


class DvrtError(Exception):
    """Base of all errors raised by dvrt."""


class ConfigError(DvrtError, ValueError):
    """A configuration key has a value that cannot work."""


class ModelError(DvrtError):
    """A checkpoint cannot be served."""


class WireError(DvrtError):
    """Bytes that are not a message of this protocol version."""


class TransportError(DvrtError):
    """Moving bytes failed."""

    retriable: ClassVar[bool] = False


class ConnectFailed(TransportError):
    """Nobody answered, or the peer refused the handshake."""

    retriable = True


class PeerLost(TransportError):
    """The other side or the network broke the channel."""

    retriable = True


class ChannelClosed(TransportError):
    """This side closed the channel."""


class ChannelBusy(TransportError):
    """Two tasks used one direction of a channel at once."""


class TransferTimeout(TransportError):
    """The deadline passed before the transfer was complete."""

    retriable = True


class Corrupted(TransportError):
    """What arrived is not what was sent."""

    def __init__(self, what: str, *, expected: object = None, got: object = None) -> None:
        super().__init__(f"{what}: expected {expected!r}, got {got!r}")
        self.what = what
        self.expected = expected
        self.got = got


class OutOfMemory(DvrtError):
    """A bounded pool has no room."""

    def __init__(self, pool: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(f"{pool}: {needed_bytes} bytes needed, {free_bytes} free")
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class StaleLease(DvrtError):
    """The slot behind a lease was given to somebody else since."""


class ProtocolError(DvrtError):
    """A message does not fit the state it arrived in."""


class ActorError(DvrtError):
    """An actor did not answer."""


class AskTimeout(ActorError):
    """No answer before the deadline; the request may still have been processed."""


class ActorGone(ActorError):
    """The actor ended, or never existed."""


class StageFailed(DvrtError):
    """A worker ended while it was needed, or what stands behind the workers failed.

    ``text`` is the whole message where ``worker`` names something else than a worker.
    """

    def __init__(self, worker: str, reason: str, *, text: str = "") -> None:
        super().__init__(text or f"worker {worker} failed: {reason}")
        self.worker = worker
        self.reason = reason


class RequestRejected(DvrtError):
    """A request was refused; ``status`` is the HTTP status that fits."""

    status: int = 400

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class Overloaded(RequestRejected):
    """The queue is full; trying again after ``retry_after_s`` seconds may work."""

    status = 429

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, code="queue_full")
        self.retry_after_s = retry_after_s


class Unavailable(RequestRejected):
    """The cluster cannot serve this request now: it starts, drains or has failed."""

    status = 503
