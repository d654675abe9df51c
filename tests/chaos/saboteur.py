"""Imported by the fork server of a test: its workers die by SIGKILL at the moment they are told,
or hang there for ever.

Moment, worker and fault are in the environment; the test's own process does not import this.
"""

from __future__ import annotations

import os
import signal
import time

from tests.chaos.moments import armed, be_a_process

FAULTS = {
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": lambda: time.sleep(1e6),
}
_phase, _worker, _fault = os.environ["DVRT_TEST_MOMENT"].split("/")
be_a_process()
_armed = armed(_phase, _worker, FAULTS[_fault])
_armed.__enter__()
