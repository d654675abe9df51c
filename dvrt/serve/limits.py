"""Every limit of the HTTP side, named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one client may cost.

    ``max_choices`` bounds prompts times ``n`` in one call. ``header_limit_s`` and ``body_limit_s``
    are for a request to arrive, ``write_stall_s`` for a client to take any of what it is sent,
    ``close_grace_s`` for answers to be written when the server closes.
    """

    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 64 << 10
    max_connections: int = 1024
    max_choices: int = 128
    header_limit_s: float = 10.0
    body_limit_s: float = 30.0
    write_stall_s: float = 60.0
    keep_alive_s: int = 30
    close_grace_s: float = 1.0
