"""What fits the memory that a stage's device has for KV entries, with swapping and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dvrt.errors import ConfigError
from dvrt.extents import EXTENT_TOKENS, row_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """The KV arena of one stage; ``entry_bytes`` are those of one position in all its layers."""

    entry_bytes: int
    context: int
    chunk_tokens: int
    batch_size: int
    n_microbatches: int

    @property
    def row_tokens(self) -> int:
        """Positions kept for a row."""
        return row_tokens(self.context, self.chunk_tokens)

    def context_within(self, row_tokens: int) -> int:
        """The longest context whose row has no more positions than these."""
        extents = max(0, row_tokens // EXTENT_TOKENS - 1) * EXTENT_TOKENS
        return extents // self.chunk_tokens * self.chunk_tokens

    @property
    def microbatch_bytes(self) -> int:
        return self.entry_bytes * self.row_tokens * self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class KvNeed:
    """Bytes of one stage: ``device_slots`` microbatches on the device, with swapping all on the
    host too."""

    device_slots: int
    device_bytes: int
    host_bytes: int


def kv_need(shape: KvShape, *, device_slots: int = 0) -> KvNeed:
    """With ``device_slots`` 0, or as many as there are microbatches, all stay on the device."""
    one = shape.microbatch_bytes
    if not 0 < device_slots < shape.n_microbatches:
        return KvNeed(
            device_slots=shape.n_microbatches,
            device_bytes=one * shape.n_microbatches,
            host_bytes=0,
        )
    return KvNeed(
        device_slots=device_slots,
        device_bytes=one * device_slots,
        host_bytes=one * shape.n_microbatches,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The most that a budget allows if only one thing changes; 0 where not even one fits."""

    batch_size: int
    context: int
    n_microbatches: int


def what_fits(shape: KvShape, budget_bytes: int, *, device_slots: int = 0) -> Fit:
    """Rows of a microbatch, tokens of context and microbatches that fit ``budget_bytes``.

    Swapping ends the device's limit on microbatches: as many as there are, if its frames fit.
    """
    frames = kv_need(shape, device_slots=device_slots).device_slots
    one_row = shape.entry_bytes * shape.row_tokens * frames
    one_token = shape.entry_bytes * shape.batch_size * frames
    fitting = budget_bytes // shape.microbatch_bytes
    if frames < shape.n_microbatches:
        fitting = shape.n_microbatches if fitting >= frames else 0
    return Fit(
        batch_size=budget_bytes // one_row,
        context=shape.context_within(budget_bytes // one_token),
        n_microbatches=fitting,
    )


def ensure_fits(shape: KvShape, budget_bytes: int | None, *, device_slots: int = 0) -> KvNeed:
    """The need, if it is within the budget (None: no limit).

    Raises ConfigError that names what would fit, with swapping and without.
    """
    need = kv_need(shape, device_slots=device_slots)
    if budget_bytes is None or need.device_bytes <= budget_bytes:
        return need
    choices = describe_fit(shape, budget_bytes, device_slots=device_slots or 2)
    raise ConfigError(
        f"kv_memory is {_size(budget_bytes)}; {need.device_slots} microbatches of "
        f"{shape.batch_size} rows with a context of {shape.context} tokens need "
        f"{_size(need.device_bytes)} on each device. {choices}"
    )


def ensure_swap_helps(
    shapes: Sequence[KvShape], budget_bytes: int | None, *, device_slots: int
) -> None:
    """Raise ConfigError when all of every stage fits the budget (None: not known) as it is.

    Swapping could then only take time: a microbatch that is there need not come.
    """
    needs = [kv_need(shape).device_bytes for shape in shapes]
    if budget_bytes is None or max(needs) > budget_bytes:
        return
    most = shapes[needs.index(max(needs))]
    fit = what_fits(most, budget_bytes, device_slots=device_slots)
    raise ConfigError(
        f"swap: all {most.n_microbatches} microbatches of {most.batch_size} rows need "
        f"{_size(max(needs))} on a device and kv_memory is {_size(budget_bytes)}, so swapping "
        f"brings nothing and costs time. Leave it out, or use the memory: with device_slots "
        f"{device_slots} there fits batch_size {fit.batch_size}. swap_anyway swaps all the same"
    )


def describe_fit(shape: KvShape, budget_bytes: int, *, device_slots: int = 2) -> str:
    """What fits the budget, in two sentences: without swapping, and with it where it helps."""
    parts = [f"Without swap {_choices(what_fits(shape, budget_bytes))}."]
    if device_slots < shape.n_microbatches:
        fit = what_fits(shape, budget_bytes, device_slots=device_slots)
        parts.append(f"With swap and device_slots {device_slots} {_choices(fit)}.")
    return " ".join(parts)


def _choices(fit: Fit) -> str:
    choices = [
        f"batch_size {fit.batch_size}" if fit.batch_size else "",
        f"max_context {fit.context}" if fit.context else "",
        f"{fit.n_microbatches} microbatches" if fit.n_microbatches else "",
    ]
    found = [choice for choice in choices if choice]
    return f"there fit {' or '.join(found)}" if found else "nothing fits"


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
