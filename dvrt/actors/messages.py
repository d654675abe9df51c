"""What the controller and the stages say to each other. Regions that travel beside are named."""

from __future__ import annotations

from dvrt.control.steps import Step
from dvrt.models.spec import StageSpec
from dvrt.wire import message


@message("worker.joined")
class Joined:
    """A worker has started and can be given a stage; ``stage_actor`` is where to reach it."""

    worker: str
    pid: int
    stage_actor: str


@message("stage.load")
class LoadStage:
    """Become stage ``stage`` of ``n_stages``, as ``spec`` says; report to actor ``controller``.

    On the null device the hash model answers and every step takes ``null_step_s``.
    """

    controller: str
    stage: int
    n_stages: int
    spec: StageSpec
    vocab_size: int
    null_step_s: float


@message("stage.loaded")
class StageLoaded:
    """The stage has its weights and its KV arena."""

    worker: str
    weights_bytes: int
    kv_bytes: int
    load_s: float
    device: str


@message("stage.connect")
class Connect:
    """Where results go: the next stage's actor, or the controller's for the last stage."""

    next_actor: str


@message("stage.connected")
class Connected:
    worker: str


@message("stage.forward")
class Forward:
    """A step on its way through the pipeline.

    Regions: the hidden states of the decodes (if any), then of each chunk, in the step's order;
    none for the first stage. ``spans`` are (begin, seconds) of the compute of the stages
    passed so far.
    """

    step: Step
    spans: tuple[tuple[float, float], ...] = ()


@message("worker.stop")
class StopWorker:
    """Finish what is computing and end."""

    reason: str
