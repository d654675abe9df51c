"""Step times of the null device from a planner's profile, and the file that carries them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from dvrt.models.null_timing import NullTiming
from dvrt.planner.profile import Profile


def stage_timing(profile: Profile, layers: int) -> NullTiming:
    """The slowest stage with so many layers: with the head in its decode steps.

    A chunk of a prompt costs what it adds to a step, so the head counts once a step at most.
    """
    prompt, token = profile.prompt.coefficients, profile.token.coefficients
    head = profile.head.coefficients if profile.head else (0.0,) * 4
    return NullTiming(
        decode_s=layers * token[0] + head[0],
        decode_row_s=layers * token[1] + head[1],
        decode_entry_s=layers * token[2],
        chunk_s=layers * (prompt[0] + prompt[1]),
        prompt_token_s=layers * prompt[2],
        prompt_entry_s=2 * layers * prompt[3],
        entry_bytes=layers * profile.model.kv_bytes_per_token,
    )


def write_timing(path: Path, timing: NullTiming) -> Path:
    """The TOML file that the option ``null_timing`` takes."""
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in asdict(timing).items()))
    return path
