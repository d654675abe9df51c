"""dvrt's logging: silent until asked, one line a record, nobody else's loggers touched."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dvrt.errors import ConfigError
from dvrt.observe.log import reset_logging, set_up_logging

logger = logging.getLogger("dvrt.test")


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    yield io.StringIO()
    reset_logging()


def test_silent_as_a_library() -> None:
    code = (
        "import logging, dvrt.observe.log; logging.getLogger('dvrt.x').error('hidden');"
        "logging.getLogger('other').error('seen')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "seen\n")


def test_lines(out: io.StringIO) -> None:
    set_up_logging("info", stream=out, origin="worker 3")
    logger.debug("too low")
    logger.info("two\nlines")
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    wanted = rf"{moment} info \[worker 3\] dvrt\.test: two\\nlines\n"
    assert re.fullmatch(wanted, out.getvalue())


def test_quiet_by_default(out: io.StringIO) -> None:
    set_up_logging(stream=out)
    logger.info("hidden")
    logger.warning("seen")
    assert out.getvalue().endswith("dvrt.test: seen\n")
    assert "hidden" not in out.getvalue()


def test_json(out: io.StringIO) -> None:
    set_up_logging("debug", stream=out, as_json=True, origin="w1")
    logger.debug("one")
    try:
        raise KeyError("x")
    except KeyError:
        logger.exception("it failed")
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (first["level"], first["message"], first["origin"]) == ("debug", "one", "w1")
    assert first["logger"] == "dvrt.test"
    assert second["error"].endswith("KeyError: 'x'")


def test_set_up_again_replaces(out: io.StringIO) -> None:
    earlier = io.StringIO()
    set_up_logging("debug", stream=earlier)
    set_up_logging("error", stream=out)
    logger.warning("hidden")
    logger.error("seen")
    assert earlier.getvalue() == ""
    assert out.getvalue().count("seen") == 1


def test_an_embedding_programs_logging_is_left_alone(out: io.StringIO) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    set_up_logging("debug", stream=out)
    logging.getLogger("other").warning("not dvrt's")
    reset_logging()
    assert (list(root.handlers), root.level) == before
    assert logging.getLogger("dvrt").propagate
    assert out.getvalue() == ""


def test_unknown_level() -> None:
    with pytest.raises(ConfigError, match="'loud'; there are debug, info, warning, error"):
        set_up_logging("loud")
