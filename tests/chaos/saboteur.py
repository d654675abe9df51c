"""Imported by the fork server of a test: its workers die by SIGKILL at the moment they are told.

The worker and the moment are in the environment; the test's own process does not import this.
"""

from __future__ import annotations

import os
import signal

from tests.chaos.moments import armed, be_a_process

_phase, _, _worker = os.environ["DVRT_TEST_MOMENT"].partition("/")
be_a_process()
_armed = armed(_phase, _worker, lambda: os.kill(os.getpid(), signal.SIGKILL))
_armed.__enter__()
