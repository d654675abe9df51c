"""What happens to the scheduler and what it orders, as values that compare with ``==``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dvrt.control.pipeline import PipelinePlan
from dvrt.control.steps import Step, StepDone
from dvrt.errors import DvrtError
from dvrt.requests import FinishReason, Request, SampledToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an earlier life of the scheduler left of a sample: its tokens, at least one, and the
    sequence that they belong to. Its log may still be in slot ``seat`` of a pipeline.
    """

    seq: int
    tokens: tuple[int, ...]
    seat: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """A client asks; the answer is a Reject or, in time, Emits.

    A request that an earlier life took has been there for ``age_s``; the queue's limit is not for
    it. Once its first tokens were drawn, ``known`` has its samples, None for those that have ended.
    """

    request: Request
    now: float
    known: tuple[Known | None, ...] = ()
    age_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End a request, or only its sample ``sample``; unknown or ended ones are no error."""

    request_id: str
    now: float
    reason: FinishReason = FinishReason.CANCELLED
    sample: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """A step came out of the pipeline."""

    done: StepDone
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed; deadlines are looked at."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogArrived:
    """A stage holds the entries [0, length) of a log, complete and checked, in ``slot``.

    They were shipped from another pipeline, or restored. A length of 0 after a Restore says that
    nothing could be had, or that what came was refused.
    """

    pipeline: int
    stage: int
    slot: int
    seq: int
    epoch: int
    length: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLost:
    """A stage's worker is gone, with its part of every log and the steps that it had."""

    pipeline: int
    stage: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsLost:
    """A link between two living stages broke: steps in flight may never come out."""

    pipeline: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """After StepsLost: every stage of the pipeline has taken note of the Rewind."""

    pipeline: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReady:
    """A lost stage has been replaced; its logs are empty."""

    pipeline: int
    stage: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalance:
    """These pipelines, all stages ready, take over; the others retire as their requests leave."""

    pipelines: tuple[PipelinePlan, ...]
    now: float


Event = (
    Submit
    | Cancel
    | StepFinished
    | Tick
    | LogArrived
    | StageLost
    | StepsLost
    | Rewound
    | StageReady
    | Rebalance
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """Send this step into the pipeline."""

    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The request was not taken."""

    request_id: str
    error: DvrtError


class Place(StrEnum):
    """Where a request is, in this order. Without separate prompt stages: QUEUE, PROMPT, TOKEN.

    SLOT: first in the queue with a prompt row free, it waits for a row on the token side.
    """

    QUEUE = "queue"
    SLOT = "slot"
    PROMPT = "prompt"
    TRANSFER = "transfer"
    TOKEN = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """The request's first sample has come to another place."""

    request_id: str
    place: Place
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewind:
    """Steps of this pipeline with an id below ``below`` are void: survivors skip and drop them."""

    pipeline: int
    below: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A log of which a replaced stage should get back [0, length), or as much as there is.

    It travels under ``epoch``, which nothing else has, so that no answer to an earlier wish counts.
    The tokens of its first ``firm`` entries were known when this life of the controller began.
    """

    slot: int
    seq: int
    epoch: int
    length: int
    firm: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Have the stage's logs brought back; each is answered by a LogArrived of that stage."""

    pipeline: int
    stage: int
    logs: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """No request is left in the pipeline, and none will come: it can be closed."""

    pipeline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """A sample's next token (None when it ends without one), and why it ends, if it does."""

    request_id: str
    sample: int
    index: int
    token: SampledToken | None
    finish: FinishReason | None = None
    error: str | None = None


Command = RunStep | Reject | Entered | Emit | Rewind | Restore | Retired
