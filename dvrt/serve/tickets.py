"""How a client names a call, so that it goes on after its connection, or the server, was lost.

The name is the header Idempotency-Key, else X-Request-Id. Events carry how many tokens of each
choice have been told; a client that comes back sends the latest as Last-Event-ID, and hears the
rest. Without it the whole answer comes again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from dvrt.results import Token
from dvrt.serve.refusal import Refusal

_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_PLACE = re.compile(r"\d{1,9}(\.\d{1,9}){0,1023}")


@dataclass(frozen=True, slots=True)
class Ticket:
    """``seen`` are the tokens that the client has of each choice; None without Last-Event-ID."""

    key: str
    seen: tuple[int, ...] | None

    def call_id(self, kind: str) -> str:
        """The same for the same key, in every life of the server."""
        return f"{kind}-{hashlib.sha256(self.key.encode()).hexdigest()[:24]}"


def read_ticket(scope: Scope) -> Ticket | None:
    """What the client calls its request; None if it gave no name. Raises Refusal."""
    headers = Headers(scope=scope)
    key, last = headers.get("idempotency-key"), headers.get("last-event-id")
    if key is not None and not _KEY.fullmatch(key):
        text = "Idempotency-Key: expected at most 128 visible ASCII characters"
        raise Refusal(400, text, param="Idempotency-Key")
    if key is None:
        key = headers.get("x-request-id", "")
        if not _KEY.fullmatch(key):
            return None
    if last is None:
        return Ticket(key, None)
    if not _PLACE.fullmatch(last):
        raise Refusal(400, "Last-Event-ID: expected one of this server's", param="Last-Event-ID")
    return Ticket(key, tuple(map(int, last.split("."))))


class Places:
    """How far each choice of a call has been told."""

    def __init__(self, n_choices: int, ticket: Ticket | None) -> None:
        """Raises Refusal for a Last-Event-ID of a call with another number of choices."""
        seen = ticket.seen if ticket is not None else None
        if seen is not None and len(seen) != n_choices:
            text = f"Last-Event-ID is of {len(seen)} choices; there are {n_choices}"
            raise Refusal(400, text, param="Last-Event-ID")
        self._seen: Sequence[int] = seen or (0,) * n_choices
        self._told = list(self._seen)
        self._is_named = ticket is not None

    def was_told(self, choice: int, token: Token) -> bool:
        """Whether the client has it from before; if not, it is being told now."""
        if token.index < self._seen[choice]:
            return True
        self._told[choice] = token.index + 1
        return False

    @property
    def event_id(self) -> str | None:
        """Of the event that tells the latest token; None for a call that has no name."""
        return ".".join(map(str, self._told)) if self._is_named else None
