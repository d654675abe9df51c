"""What an OSError says, in words that are the same on every loop."""

from __future__ import annotations

import os


def reason(error: OSError) -> str:
    """What the error number means, whatever text the loop gave the error; without one, the text."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
