"""The public planner's answers, errors and quirks, for comparison with its published runs.

It knows Equations 1, 2 and 5 in whole machines and integer milliseconds. Its ways are kept on
purpose; ``dvrt.planner.plan`` is the planner to use. They are:

- machines for tokens are always rounded up, so prompts may be left with none: an error;
- a split is never compared with the colocated pipeline, nor with its neighbours;
- KV that leaves no room for weights makes a negative count, which fails an assertion without text;
- no room for one prompt layer, or exactly none for a token layer, divides by zero; so much KV that
  the count falls below minus the layers rounds to 0 machines, and passes;
- ``machines_per_node`` counts GPUs of one machine; memory and times are whole numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from dvrt.errors import ConfigError
from dvrt.planner import equations

GB = 1e9
CANNOT_FIT = "Cannot fit the model!"
NO_PARTITIONING = "Cannot find a valid partitioning!"


class PublicPlannerError(ConfigError):
    """The public planner ends with an error here; ``public_error`` is that error's last line."""

    def __init__(self, message: str, *, public_error: str) -> None:
        super().__init__(message)
        self.public_error = public_error


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicInput:
    """The public planner's arguments with its defaults: GB, milliseconds, numbers of parameters.

    ``prompt_time_ms`` and ``token_time_ms`` are those of one microbatch on one stage of a
    pipeline of ``num_machines`` stages. Raises ConfigError for numbers that cannot be meant.
    """

    num_machines: int = 1
    memory_per_gpu: int = 1
    num_machines_per_node: int = 1
    prompt_len: int = 1
    num_extra_tokens: int = 1
    fp_size: int = 4
    batch_size: int = 1
    token_time: int = 1
    prompt_stream_overhead: float = 1.0
    prompt_time: int = 1
    num_layers: int = 1
    attention_size: int = 1
    layer_size: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "prompt_stream_overhead" and type(value) is not int:
                raise ConfigError(
                    f"{field.name} is {value!r}; the public planner takes whole numbers"
                )
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{field.name} is {value!r}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicAnswer:
    """The public planner's split and the quantities behind it (GB, milliseconds)."""

    prompt_machines: int
    token_machines: int
    min_prompt_machines: int
    min_token_machines: int
    layer_weights_gb: float
    prompt_kv_gb: float
    microbatch_kv_gb: float
    token_layers: int
    real_token_machines: float

    def lines(self) -> tuple[str, str]:
        """The two lines that the public planner prints."""
        return (
            f"Num machines for prompt: {self.prompt_machines}",
            f"Num machines for token: {self.token_machines}",
        )


def answer(given: PublicInput) -> PublicAnswer:
    """What the public planner prints, with its intermediates.

    Raises PublicPlannerError where it ends with an exception, naming that exception and its text.
    """
    memory = given.num_machines_per_node * given.memory_per_gpu
    weights = given.layer_size * given.fp_size / GB
    prompt_kv = _kv_gb(given, given.prompt_len)
    microbatch_kv = _kv_gb(given, given.prompt_len + given.num_extra_tokens)
    held = equations.prompt_layers_per_machine(memory, layer_weights=weights, prompt_kv=prompt_kv)
    token_layers = equations.token_layers_per_machine(
        given.num_layers, memory, layer_weights=weights, microbatch_kv=microbatch_kv
    )
    least_prompt = _least_machines(given.num_layers, held)
    least_token = _least_machines(given.num_layers, token_layers)
    _check_fit(given.num_machines, least_prompt, least_token)
    real = _real_token_machines(given)
    token_machines = math.ceil(real)
    prompt_machines = given.num_machines - token_machines
    if token_machines < least_token or prompt_machines < least_prompt:
        raise _failed_assertion(NO_PARTITIONING)
    return PublicAnswer(
        prompt_machines=prompt_machines,
        token_machines=token_machines,
        min_prompt_machines=least_prompt,
        min_token_machines=least_token,
        layer_weights_gb=weights,
        prompt_kv_gb=prompt_kv,
        microbatch_kv_gb=microbatch_kv,
        token_layers=token_layers,
        real_token_machines=real,
    )


def _kv_gb(given: PublicInput, length: int) -> float:
    return length * given.batch_size * given.attention_size * given.fp_size * 2 / GB


def _least_machines(layers: int, held: int) -> int:
    """``ceil(L / held)`` as the public planner has it: negative for a negative count, or even 0."""
    if held == 0:
        raise PublicPlannerError(
            "no layer fits one machine; the public planner divides by zero",
            public_error="ZeroDivisionError: division by zero",
        )
    return math.ceil(layers / held)


def _check_fit(machines: int, least_prompt: int, least_token: int) -> None:
    if least_prompt < 0 or least_token < 0:
        raise _failed_assertion("")
    if least_prompt > machines or least_token > machines:
        raise _failed_assertion(CANNOT_FIT)


def _real_token_machines(given: PublicInput) -> float:
    return equations.ideal_token_machines(
        given.num_machines,
        prompt_time=given.prompt_time,
        token_time=given.token_time,
        tokens=given.num_extra_tokens,
        stream_overhead=given.prompt_stream_overhead,
    )


def _failed_assertion(message: str) -> PublicPlannerError:
    return PublicPlannerError(
        message or "the KV alone is larger than the memory; the public planner only asserts",
        public_error=f"AssertionError: {message}" if message else "AssertionError",
    )


def parse_public_input(text: str) -> PublicInput:
    """``num_machines=4,fp_size=2,...`` as the public planner's arguments over its defaults.

    ConfigError names an unknown key or a value that is not a number.
    """
    known = {field.name for field in fields(PublicInput)}
    values: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        name = key.strip().lstrip("-").replace("-", "_")
        if name not in known:
            raise ConfigError(
                f"{key.strip()!r}: the public planner takes {', '.join(sorted(known))}"
            )
        try:
            values[name] = float(value) if name == "prompt_stream_overhead" else int(value)
        except ValueError:
            raise ConfigError(
                f"{name}={value!r} is not a number the public planner takes"
            ) from None
    return PublicInput(**values)  # type: ignore[arg-type]
