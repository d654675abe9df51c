"""What the controller and the stages say to each other. Regions that travel beside are named."""

from __future__ import annotations

from dvrt.models.null_timing import NullTiming
from dvrt.models.spec import StageSpec
from dvrt.models.swap_figures import SwapFigures
from dvrt.wire import message

REPLICAS, ARCHIVE = "replicas", "archive"
"""The names of a worker's actors that keep copies: of others' logs, and of its own in files."""
GENERATION_BITS = 40
"""The low bits of ids of steps and sequences and of epochs; above them stands the number of the
controller's life."""


@message("worker.joined")
class Joined:
    """A worker has started and can be given work.

    ``host_actor`` makes stages at that worker, ``replica_actor`` keeps copies of others' logs, and
    ``archive_actor``, if there is one, those of its own in files.
    """

    worker: str
    pid: int
    host_actor: str
    replica_actor: str = ""
    archive_actor: str = ""


@message("stage.load")
class LoadStage:
    """Become stage ``stage`` of ``n_stages``, as ``spec`` says; report to actor ``controller``.

    ``pipeline`` is the id of the pipeline that the stage belongs to.

    On the null device the hash model answers and every step takes ``null_step_s``, or what
    ``timing`` says. A stage that finishes no step for ``step_limit_s`` fails (0: never). One that
    ``is_traced`` tells of its copies.
    """

    controller: str
    pipeline: int
    stage: int
    n_stages: int
    spec: StageSpec
    vocab_size: int
    null_step_s: float
    timing: NullTiming | None = None
    step_limit_s: float = 0.0
    is_traced: bool = False


@message("stage.warm")
class WarmUp:
    """The controller to a spare's host: have ready what these stages need, one of which it gets."""

    orders: tuple[LoadStage, ...]


@message("stage.close")
class CloseStage:
    """The controller to a worker's host: this stage is needed no longer; free what it holds."""

    pipeline: int
    stage: int
    reason: str


@message("stage.loading")
class StageLoading:
    """The stage has read so much of its weights; told now and then while it reads."""

    worker: str
    pipeline: int
    stage: int
    read_bytes: int
    total_bytes: int


@message("stage.loaded")
class StageLoaded:
    """The stage, reached at ``actor``, has its weights and its KV arena; ``swap`` if it swaps."""

    worker: str
    actor: str
    pipeline: int
    stage: int
    weights_bytes: int
    kv_bytes: int
    load_s: float
    device: str
    swap: SwapFigures | None = None


@message("stage.swapped", version=2)
class Swapped:
    """A stage that swaps to the controller: its figures, since there were copies."""

    pipeline: int
    stage: int
    figures: SwapFigures


@message("stage.copies")
class Copies:
    """A stage that is traced to the controller: the copies since its last word.

    ``copies`` are (lane, name, begin, seconds, bytes); copies of one kind share a lane.
    """

    pipeline: int
    stage: int
    copies: tuple[tuple[str, str, float, float, int], ...]


@message("stage.address")
class StageAddress:
    """A stage as others reach it: its actor, and the layers [first, stop) that it holds."""

    actor: str
    first: int
    stop: int


@message("pipeline.address")
class PipelineAddress:
    """The stages of a pipeline in their order."""

    pipeline: int
    stages: tuple[StageAddress, ...]


@message("stage.connect")
class Connect:
    """Where a stage's results go; told anew whenever something of it changes.

    ``next_actor`` is the next stage's actor, or the controller's for the last stage. ``targets``
    are the pipelines that logs may be shipped to. ``replicas`` are the replica actors that keep
    copies of this stage's logs, nearest in the ring first; one that is new gets all of them.
    """

    next_actor: str
    targets: tuple[PipelineAddress, ...] = ()
    replicas: tuple[str, ...] = ()


@message("stage.connected")
class Connected:
    """The stage works by the last Connect."""

    worker: str
    pipeline: int
    stage: int


@message("stage.cut")
class LinkCut:
    """A stage to the controller: steps for the next stage may be lost, though it may live.

    It passes nothing on until it is told a Connect. ``next_actor`` is whom it could not reach.
    """

    pipeline: int
    stage: int
    next_actor: str
    reason: str


@message("stage.unreached")
class Unreached:
    """A stage to the controller: no link to a stage of another pipeline, ``actor``, could be had.

    What was to be sent there will be asked for again.
    """

    pipeline: int
    stage: int
    actor: str
    reason: str


@message("stage.rewind")
class Rewind:
    """Steps with an id below ``below`` are void: skip those not computed, drop their results."""

    below: int


@message("kv.entries")
class Entries:
    """Entries [start, stop) of a log in the layers [first, last) of the model, for one slot.

    Region: the entries, position by position, of each its layers, of each the keys [heads, dim] and
    then the values. ``digest`` is its xxh3. ``sender`` names where they come from and ``index``
    counts, from 0, the Entries of that sender for (slot, epoch).
    """

    slot: int
    seq: int
    epoch: int
    first: int
    last: int
    start: int
    stop: int
    sender: str
    index: int
    digest: int


@message("kv.commit")
class Commit:
    """All entries [0, length) of a log in the layers [first, last) have been sent by ``sender``.

    ``chunks``, ``nbytes`` and ``digest`` are the sum over its Entries (see ``kv.digest.Tally``).
    """

    slot: int
    seq: int
    epoch: int
    first: int
    last: int
    length: int
    sender: str
    chunks: int
    nbytes: int
    digest: int


@message("kv.arrived")
class Arrived:
    """A stage to the controller: all its layers of a log are here up to ``length`` and checked.

    A length of 0: what came was refused, for ``reason``.
    """

    pipeline: int
    stage: int
    slot: int
    seq: int
    epoch: int
    length: int
    reason: str = ""


@message("kv.range")
class LogRange:
    """Positions [start, stop) of a sequence's log in one slot."""

    slot: int
    seq: int
    epoch: int
    start: int
    stop: int


@message("replica.append")
class Replicate:
    """New entries of one stage's logs, to a replica actor.

    Region: the ranges one after the other, each packed as in Entries for all layers of the stage.
    ``step`` is the newest step that they cover. A slot that another sequence has now forgets the
    former one.
    """

    pipeline: int
    stage: int
    origin: str
    first: int
    last: int
    step: int
    ranges: tuple[LogRange, ...]
    digest: int


@message("replica.stored")
class Replicated:
    """A replica actor to the controller: what came up to ``step`` is stored and checked."""

    pipeline: int
    stage: int
    holder: str
    step: int
    refused: int = 0


@message("replica.gap")
class ReplicaGap:
    """A replica actor to the stage: these logs do not join what is held; send them from 0."""

    holder: str
    ranges: tuple[LogRange, ...]


@message("replica.drop")
class DropReplicas:
    """The controller to a replica actor: nobody will want logs of this pipeline any more."""

    pipeline: int


@message("replica.send", version=2)
class SendReplica:
    """The controller to a replica actor: ship these logs to ``to``, as Entries and a Commit each.

    ``ranges`` name slot, seq, the epoch to ship under, and the most that is wanted, ``first`` and
    ``last`` the layers of the stage. Asked; answered by ReplicaSent. An archive takes it as well.

    Where the same calls may give other tokens, numbers of this life of the controller begin at
    ``life`` (else 0), and when it began it knew the tokens of the first ``firms`` entries of each
    log. Tokens that a life had drawn and not written down may have been drawn again since.
    """

    pipeline: int
    stage: int
    to: str
    ranges: tuple[LogRange, ...]
    first: int = 0
    last: int = 0
    life: int = 0
    firms: tuple[int, ...] = ()

    def trusted(self, index: int, epoch: int) -> int:
        """How much of a copy with this epoch may be sent: all that is wanted of one of this life,
        of the life before only what this one knew, nothing of older ones."""
        wanted = self.ranges[index].stop
        if not self.life or epoch >= self.life:
            return wanted
        is_of_former = epoch >= self.life - (1 << GENERATION_BITS)
        return min(wanted, self.firms[index]) if is_of_former else 0


@message("archive.failed")
class ArchiveFailed:
    """An archive actor to the controller: the disk refuses, and nothing more is written."""

    worker: str
    reason: str


@message("replica.sent")
class ReplicaSent:
    """What was shipped; logs that are not held are left out."""

    ranges: tuple[LogRange, ...]


@message("stage.forward")
class Forward:
    """A step on its way through the pipeline: an encoded Step, which stages pass on as it came.

    Regions: the hidden states of the decodes (if any), then of each chunk, in the step's order;
    none for the first stage. ``spans`` are (begin, seconds) of the compute of the stages
    passed so far.
    """

    step: bytes
    spans: tuple[tuple[float, float], ...] = ()


@message("worker.stop")
class StopWorker:
    """Finish what is computing and end."""

    reason: str
