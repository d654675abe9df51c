"""The plan of a launch, before any process exists: who holds which layers, in which shape."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dvrt.actors.messages import LoadStage
from dvrt.config import LaunchOptions
from dvrt.control.pipeline import PipelineShape
from dvrt.control.scheduler import Limits
from dvrt.models.check import inspect_checkpoint
from dvrt.models.spec import GenerationDefaults, ModelSpec, StageSpec
from dvrt.models.split import split_as_given, split_evenly
from dvrt.results import ModelCard

CHUNKS_PER_STEP = 2
"""Prompt chunks that one step may carry: the longest that a prompt holds up the others' tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """Everything the controller needs to turn joined workers into a pipeline."""

    card: ModelCard
    defaults: GenerationDefaults
    shape: PipelineShape
    limits: Limits
    stages: tuple[LoadStage, ...]

    @property
    def modelling_modules(self) -> list[str]:
        """The module of transformers that computes this family, where it has one by that name."""
        name = f"transformers.models.{self.card.family}.modeling_{self.card.family}"
        try:
            return [name] if find_spec(name) is not None else []
        except ModuleNotFoundError:
            return []


def plan_cluster(options: LaunchOptions, directory: Path) -> ClusterPlan:
    """Look at the checkpoint and lay out the stages.

    Reads config.json and the headers of the weights, no tensor. Raises ModelError for what cannot
    be served and ConfigError for options that do not fit the model.
    """
    model = inspect_checkpoint(directory)
    context = model.context(options.max_context)
    specs = _stage_specs(options, model, context)
    return ClusterPlan(
        card=ModelCard(
            name=options.served_name or model.name,
            family=model.family,
            n_layers=model.n_layers,
            vocab_size=model.vocab_size,
            max_context=context,
        ),
        defaults=model.defaults,
        shape=PipelineShape(
            n_stages=len(specs),
            n_microbatches=options.n_microbatches,
            batch_size=options.batch_size,
            chunk_tokens=options.chunk_tokens,
            chunks_per_step=CHUNKS_PER_STEP,
        ),
        limits=Limits(
            max_context=context, vocab_size=model.vocab_size, max_queue=options.max_queue
        ),
        stages=tuple(
            LoadStage(
                controller="",
                stage=stage,
                n_stages=len(specs),
                spec=spec,
                vocab_size=model.vocab_size,
                null_step_s=options.null_step_ms / 1000 if spec.device == "null" else 0.0,
            )
            for stage, spec in enumerate(specs)
        ),
    )


def _stage_specs(options: LaunchOptions, model: ModelSpec, context: int) -> list[StageSpec]:
    intervals = (
        split_as_given(model.n_layers, options.layers)
        if options.layers
        else split_evenly(model.n_layers, options.n_stages)
    )
    device = _device(options)
    return [
        StageSpec(
            directory=str(model.directory),
            first=first,
            stop=stop,
            n_layers=model.n_layers,
            dtype=_dtype(options, model, device),
            n_microbatches=options.n_microbatches,
            batch_size=options.batch_size,
            max_context=context,
            chunk_tokens=options.chunk_tokens,
            exact=options.exact,
            n_threads=options.threads,
            device=device,
        )
        for first, stop in intervals
    ]


def _device(options: LaunchOptions) -> str:
    if options.device != "auto":
        return options.device
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def _dtype(options: LaunchOptions, model: ModelSpec, device: str) -> str:
    """Half precision is slow and coarse on CPUs, so there ``auto`` means float32."""
    if options.dtype != "auto":
        return options.dtype
    return model.dtype if device.startswith("cuda") else "float32"
