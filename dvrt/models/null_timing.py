"""How long the null device takes for its steps, and how large its entries pretend to be."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path

from dvrt.errors import ConfigError
from dvrt.options import read_toml
from dvrt.wire import message


@message("null.timing")
class NullTiming:
    """Seconds of a stage's work, linear in what it is made of.

    A decode step takes ``decode_s``, and for each row ``decode_row_s`` and for each entry that the
    rows read ``decode_entry_s``. A prompt chunk takes ``chunk_s``, for each token
    ``prompt_token_s`` and for each entry that each token reads ``prompt_entry_s``. Chunks and the
    decodes of one step come after each other. ``entry_bytes`` are those of one position in all
    layers of the stage, for the copies' time; 0 for the real ones, which are few.

    A worker takes ``start_s`` from its beginning until it can join. A stage's weights take
    ``read_s`` on their way to the host's memory, which a spare has paid before, and ``load_s`` from
    there to the device.
    """

    decode_s: float = 0.0
    decode_row_s: float = 0.0
    decode_entry_s: float = 0.0
    chunk_s: float = 0.0
    prompt_token_s: float = 0.0
    prompt_entry_s: float = 0.0
    entry_bytes: int = 0
    start_s: float = 0.0
    read_s: float = 0.0
    load_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value}; a finite number from 0 on")

    def scaled(self, *, token: float = 1.0, prompt: float = 1.0) -> NullTiming:
        """Decode steps and prompt chunks that take so many times as long."""
        return replace(
            self,
            decode_s=token * self.decode_s,
            decode_row_s=token * self.decode_row_s,
            decode_entry_s=token * self.decode_entry_s,
            chunk_s=prompt * self.chunk_s,
            prompt_token_s=prompt * self.prompt_token_s,
            prompt_entry_s=prompt * self.prompt_entry_s,
        )

    def decode_step_s(self, positions: list[int]) -> float:
        """A step that extends logs of these lengths by one entry each."""
        if not positions:
            return 0.0
        entries = sum(positions) + len(positions)
        return self.decode_s + len(positions) * self.decode_row_s + entries * self.decode_entry_s

    def chunk_step_s(self, start: int, n_tokens: int) -> float:
        """A chunk of a prompt from position ``start`` on."""
        entries = n_tokens * start + n_tokens * (n_tokens + 1) / 2
        return self.chunk_s + n_tokens * self.prompt_token_s + entries * self.prompt_entry_s


def read_timing(path: Path) -> NullTiming:
    """The TOML file's keys are the fields. Raises ConfigError that names what is wrong."""
    given = read_toml(path)
    known = {field.name for field in fields(NullTiming)}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{path}: unknown key {name!r}; known are {', '.join(sorted(known))}")
        if type(value) not in (int, float) or (name == "entry_bytes" and type(value) is not int):
            raise ConfigError(f"{path}: {name} is {value!r}; a number is expected")
    try:
        return NullTiming(**given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
