"""The plan of a launch, before any process exists: which pipelines, who holds which layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dvrt.config import LaunchOptions
from dvrt.control.pipeline import PipelinePlan, PipelineShape, Purpose
from dvrt.control.scheduler import Limits
from dvrt.errors import ConfigError
from dvrt.models.budget import KvShape, ensure_fits, ensure_swap_helps
from dvrt.models.check import inspect_checkpoint
from dvrt.models.null_timing import NullTiming, read_timing
from dvrt.models.spec import GenerationDefaults, ModelSpec, StageSpec
from dvrt.models.split import split_as_given, split_evenly
from dvrt.protocol.messages import LoadStage
from dvrt.results import ModelCard

CHUNKS_PER_STEP = 2
"""Prompt chunks that one step may carry: the longest that a prompt holds up the others' tokens."""

STAGES_OPTION = {
    Purpose.BOTH: "stages",
    Purpose.PROMPT: "prompt_stages",
    Purpose.TOKEN: "token_stages",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How many stages: ``prompt`` and ``token`` ones, or without ``prompt`` one pipeline for both.

    ``layers`` are the sizes of the stages of that one pipeline, where they were given.
    """

    prompt: int | None = None
    token: int
    layers: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        *,
        stages: int | None = None,
        prompt_stages: int | None = None,
        token_stages: int | None = None,
    ) -> Split:
        """Raises ConfigError for anything but ``stages`` alone or the other two together."""
        given = {"stages": stages, "prompt_stages": prompt_stages, "token_stages": token_stages}
        for name, value in given.items():
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; expected a whole number, at least 1")
        if stages is not None and prompt_stages is None and token_stages is None:
            return cls(token=stages)
        if stages is None and prompt_stages is not None and token_stages is not None:
            return cls(prompt=prompt_stages, token=token_stages)
        raise ConfigError("give stages, or prompt_stages and token_stages together")

    @property
    def n_workers(self) -> int:
        return self.token + (self.prompt or 0)

    def __str__(self) -> str:
        if self.prompt is None:
            return f"{self.token} stages"
        return f"{self.prompt} prompt and {self.token} token stages"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineLayout:
    """A pipeline and what each of its stages has to load."""

    plan: PipelinePlan
    loads: tuple[LoadStage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """Everything the controller needs to turn joined workers into pipelines."""

    card: ModelCard
    defaults: GenerationDefaults
    limits: Limits
    layouts: tuple[PipelineLayout, ...]
    blueprint: Blueprint

    @property
    def n_workers(self) -> int:
        return sum(len(layout.loads) for layout in self.layouts)

    @property
    def device(self) -> str:
        return self.layouts[0].loads[0].spec.device

    @property
    def modelling_modules(self) -> list[str]:
        """The module of transformers that computes this family, where it has one by that name."""
        name = f"transformers.models.{self.card.family}.modeling_{self.card.family}"
        try:
            return [name] if find_spec(name) is not None else []
        except ModuleNotFoundError:
            return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What all pipelines of a launch have in common; lays out any split of the model."""

    options: LaunchOptions
    model: ModelSpec
    context: int
    device: str
    dtype: str
    timing: NullTiming | None = None

    def lay_out(self, split: Split, *, first_id: int) -> tuple[PipelineLayout, ...]:
        """The pipelines of a split, prompts first, with ids from ``first_id``. Raises ConfigError:
        more stages than layers."""
        pipelines = enumerate(self._purposes(split), start=first_id)
        return tuple(
            self._pipeline(PipelinePlan(id=number, purpose=purpose, shape=shape), split)
            for number, (purpose, shape) in pipelines
        )

    def _purposes(self, split: Split) -> Iterator[tuple[Purpose, PipelineShape]]:
        given = self.options
        if split.prompt is not None:
            rows = given.prompt_batch_size or given.batch_size
            yield Purpose.PROMPT, self._shape(split.prompt, given.prompt_microbatches, rows)
        purpose = Purpose.BOTH if split.prompt is None else Purpose.TOKEN
        yield purpose, self._shape(split.token, given.microbatches, given.batch_size)

    def _shape(self, n_stages: int, microbatches: int | None, batch_size: int) -> PipelineShape:
        """As many microbatches as were asked for, and never fewer than keep all stages busy."""
        return PipelineShape(
            n_stages=n_stages,
            n_microbatches=max(microbatches or n_stages + 1, n_stages),
            batch_size=batch_size,
            chunk_tokens=self.options.chunk_tokens,
            chunks_per_step=CHUNKS_PER_STEP,
            repeats=self.options.exact,
        )

    def _pipeline(self, plan: PipelinePlan, split: Split) -> PipelineLayout:
        n_layers = self.model.n_layers
        if split.layers and plan.purpose is Purpose.BOTH:
            intervals = split_as_given(n_layers, split.layers)
        else:
            name = STAGES_OPTION[plan.purpose]
            intervals = split_evenly(n_layers, plan.shape.n_stages, name=name)
        loads = tuple(self._load(plan, stage, cut) for stage, cut in enumerate(intervals))
        return PipelineLayout(plan=plan, loads=loads)

    def _load(self, plan: PipelinePlan, stage: int, layers: tuple[int, int]) -> LoadStage:
        is_null = self.device == "null"
        return LoadStage(
            controller="",
            pipeline=plan.id,
            stage=stage,
            n_stages=plan.shape.n_stages,
            spec=self._spec(plan.shape, layers),
            vocab_size=self.model.vocab_size,
            null_step_s=self.options.null_step_ms / 1000 if is_null else 0.0,
            timing=self.timing if is_null else None,
            step_limit_s=self.options.step_limit_s,
            is_traced=self.options.trace is not None,
        )

    def _spec(self, shape: PipelineShape, layers: tuple[int, int]) -> StageSpec:
        self._ensure_fits(shape, layers)
        return StageSpec(
            directory=str(self.model.directory),
            first=layers[0],
            stop=layers[1],
            n_layers=self.model.n_layers,
            dtype=self.dtype,
            n_microbatches=shape.n_microbatches,
            batch_size=shape.batch_size,
            max_context=self.context,
            chunk_tokens=self.options.chunk_tokens,
            exact=self.options.exact,
            n_threads=self.options.threads,
            device=self.device,
            device_slots=self._device_slots,
            swap_bandwidth=float(self.options.swap_bandwidth),
        )

    @property
    def _device_slots(self) -> int:
        return self.options.device_slots if self.options.swap else 0

    def ensure_swap_helps(self, layouts: Iterable[PipelineLayout]) -> None:
        """Raise ConfigError for swapping where ``kv_memory`` has room for everything.

        Of a launch; a split that it is changed to later may have room.
        """
        options = self.options
        if not options.swap or options.swap_anyway:
            return
        shapes = [
            self._kv_shape(layout.plan.shape, load.spec.layers)
            for layout in layouts
            for load in layout.loads
        ]
        ensure_swap_helps(shapes, options.kv_memory, device_slots=options.device_slots)

    def _ensure_fits(self, shape: PipelineShape, layers: tuple[int, int]) -> None:
        """Raise ConfigError, saying what would fit, when the logs exceed ``kv_memory``."""
        rows = self._kv_shape(shape, layers)
        ensure_fits(rows, self.options.kv_memory, device_slots=self._device_slots)

    def _kv_shape(self, shape: PipelineShape, layers: tuple[int, int]) -> KvShape:
        return KvShape(
            entry_bytes=self.model.kv_bytes_per_token(layers, self.dtype),
            context=self.context,
            chunk_tokens=self.options.chunk_tokens,
            batch_size=shape.batch_size,
            n_microbatches=shape.n_microbatches,
        )


def plan_cluster(options: LaunchOptions, directory: Path) -> ClusterPlan:
    """Look at the checkpoint and lay out the stages.

    Reads config.json and the headers of the weights, no tensor. Raises ModelError for what cannot
    be served and ConfigError for options that do not fit the model.
    """
    model = inspect_checkpoint(directory)
    context = model.context(options.max_context)
    device = _device(options)
    blueprint = Blueprint(
        options=options,
        model=model,
        context=context,
        device=device,
        dtype=_dtype(options, model, device),
        timing=read_timing(Path(options.null_timing)) if options.null_timing else None,
    )
    split = Split(prompt=options.prompt_stages, token=options.n_stages, layers=options.layers)
    layouts = blueprint.lay_out(split, first_id=0)
    blueprint.ensure_swap_helps(layouts)
    return ClusterPlan(
        card=ModelCard(
            name=options.served_name or model.name,
            family=model.family,
            n_layers=model.n_layers,
            vocab_size=model.vocab_size,
            max_context=context,
        ),
        defaults=model.defaults,
        limits=Limits(
            max_context=context, vocab_size=model.vocab_size, max_queue=options.max_queue
        ),
        layouts=layouts,
        blueprint=blueprint,
    )


def _device(options: LaunchOptions) -> str:
    if options.device != "auto":
        return options.device
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def _dtype(options: LaunchOptions, model: ModelSpec, device: str) -> str:
    """Half precision is slow and coarse on CPUs, so there ``auto`` means float32."""
    if options.dtype != "auto":
        return options.dtype
    return model.dtype if device.startswith("cuda") else "float32"
