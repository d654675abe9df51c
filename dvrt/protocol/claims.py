"""What a controller that was started again and the workers of its former life say to each other."""

from __future__ import annotations

from dvrt.protocol.messages import Joined, LoadStage, LogRange, StageLoaded
from dvrt.wire import Message, message

CUSTODIAN = "custodian"
"""The name of the actor of a worker that answers claims."""


@message("orphan.claim")
class Claim:
    """A later life of the controller, at the same address, wants the worker. Asked.

    Every message of the controller counts from now on as one of life ``generation``, and steps with
    an id below ``below`` are void. Answered by Holdings; refused, with Unavailable, by a worker
    that belongs to that life or a later one.
    """

    generation: int
    below: int


@message("orphan.dismiss")
class Dismiss:
    """A later life of the controller has no use for the worker, which ends."""

    generation: int
    reason: str


@message("orphan.survey")
class Survey:
    """The custodian to its worker's host: steps below ``below`` are void; what is there? Asked."""

    below: int


@message("orphan.stage")
class HeldStage:
    """A stage that has its weights, and the logs in its arena, each from position 0 on.

    ``loaded`` is what it said when it was loaded.
    """

    order: LoadStage
    loaded: StageLoaded
    logs: tuple[LogRange, ...]

    @property
    def key(self) -> tuple[int, int]:
        return self.order.pipeline, self.order.stage


@message("orphan.surveyed")
class Surveyed(Message):
    """All stages of a worker; ``is_whole`` unless one of them is still loading."""

    stages: tuple[HeldStage, ...]
    is_whole: bool


@message("orphan.holdings")
class Holdings(Message):
    """What a worker is and has. ``started`` tells its process from others that had its pid;
    ``terms`` are those under which it works (see ``worker_process.terms_of``)."""

    joined: Joined
    started: int
    terms: bytes
    surveyed: Surveyed


@message("orphan.member")
class CrewMember:
    """A worker as the journal has it, whose node is at ``address``."""

    name: str
    address: str


@message("orphan.crew")
class CrewRecord:
    """The workers that a controller at ``controller`` (its node's address) has started."""

    controller: str
    members: tuple[CrewMember, ...]
