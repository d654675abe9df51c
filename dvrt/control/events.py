"""What happens to the scheduler and what it orders, as values that compare with ``==``."""

from __future__ import annotations

from dataclasses import dataclass

from dvrt.control.steps import Step, StepDone
from dvrt.errors import DvrtError
from dvrt.requests import FinishReason, Request, SampledToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """A client asks; the answer is a Reject or, in time, Emits."""

    request: Request
    now: float


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


Event = Submit | Cancel | StepFinished | Tick


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """Send this step into the pipeline."""

    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The request was not taken."""

    request_id: str
    error: DvrtError


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The request's first sample got a row; it waited in the queue until now."""

    request_id: str
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """A sample's next token (None when it ends without one), and why it ends, if it does."""

    request_id: str
    sample: int
    index: int
    token: SampledToken | None
    finish: FinishReason | None = None
    error: str | None = None


Command = RunStep | Reject | Admitted | Emit
