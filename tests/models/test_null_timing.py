"""Step times of the null device, and the file that says them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.errors import ConfigError
from dvrt.models.null_timing import NullTiming, read_timing

TIMING = NullTiming(
    decode_s=1.0,
    decode_row_s=0.1,
    decode_entry_s=0.01,
    chunk_s=2.0,
    prompt_token_s=0.5,
    prompt_entry_s=0.25,
)


def test_steps_are_the_sum_of_their_parts() -> None:
    assert TIMING.decode_step_s([]) == 0
    assert TIMING.decode_step_s([3, 5]) == pytest.approx(1 + 0.2 + 0.1)
    assert TIMING.chunk_step_s(0, 2) == pytest.approx(2 + 1 + 0.25 * (1 + 2))
    assert TIMING.chunk_step_s(4, 2) == pytest.approx(2 + 1 + 0.25 * (5 + 6))


def test_two_halves_of_a_prompt_cost_what_the_whole_does() -> None:
    free = NullTiming(prompt_token_s=0.5, prompt_entry_s=0.25)
    whole = free.chunk_step_s(0, 64)
    assert free.chunk_step_s(0, 32) + free.chunk_step_s(32, 32) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("decode_ms = 3", "unknown key 'decode_ms'"),
        ("decode_s = '3'", "decode_s is '3'"),
        ("decode_s = -1", "decode_s is -1"),
        ("decode_s = inf", "decode_s is inf"),
        ("entry_bytes = 1.5", "entry_bytes is 1.5"),
        ("decode_s = ", "times.toml"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "times.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="times.toml") as caught:
        read_timing(path)
    assert fault in str(caught.value)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "times.toml"
    path.write_text("decode_s = 0.004\nentry_bytes = 4096\n")
    assert read_timing(path) == NullTiming(decode_s=0.004, entry_bytes=4096)
