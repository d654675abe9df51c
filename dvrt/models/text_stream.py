"""One sample's text as its tokens come: characters whole, stop strings held back, nothing unsaid.

Knows nothing of tokenizers: a ``Detokenizer`` says which text each token makes certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dvrt.errors import RequestRejected


class Detokenizer(Protocol):
    """The text of the tokens pushed so far, split into what is certain and what is open.

    An immutable value: the certain pieces of a chain of pushes, joined and followed by the last
    value's ``rest()``, equal the tokenizer's decoding of all the tokens.
    """

    def push(self, token_id: int) -> tuple[str, Detokenizer]:
        """The text that no later token can change, and the value after this token."""

    def rest(self) -> str:
        """What would follow, were this the end."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """What one token adds to a text that has begun; None where that is not known."""


class TextStream:
    """One sample's text, incrementally; not for several threads at once.

    The pieces that ``push`` and ``finish`` return, joined, equal the codec's ``decode`` of all
    tokens pushed, cut before the stop string that is completed first (the longest of those that
    are completed by the same character). What has been returned is never changed.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        """Raises RequestRejected for an empty stop string."""
        if not all(stop):
            raise RequestRejected("a stop string is empty", param="stop")
        self._stop = tuple(dict.fromkeys(stop))
        self._detokenizer = detokenizer
        self._held = ""
        self._before = (detokenizer, "", "")
        self._pieces: list[str] = []
        self._is_stopped = False
        self._is_finished = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed; the text ends before it."""
        return self._is_stopped

    @property
    def text(self) -> str:
        """All that was returned so far."""
        return "".join(self._pieces)

    def push(self, token_id: int) -> str:
        """The text that became certain; ``""`` while a character or a stop string may be open.

        Also ``""`` once ``stopped``. Raises RuntimeError after ``finish``.
        """
        if self._is_finished:
            raise RuntimeError("a token was pushed after the end of its text")
        if self._is_stopped:
            return ""
        detokenizer, held = self._detokenizer, self._held
        certain, self._detokenizer = detokenizer.push(token_id)
        piece, self._held = self._split(held + certain)
        self._before = (detokenizer, held, piece)
        return self._say(piece)

    def finish(self, *, drop_last: bool = False) -> str:
        """What was held back; ``""`` once ``stopped`` and when called again.

        ``drop_last`` leaves out the last token pushed, one that ended the text and is none, as far
        as its text has not been returned yet.
        """
        if self._is_finished or self._is_stopped:
            self._is_finished = True
            return ""
        self._is_finished = True
        detokenizer, held, said = self._before if drop_last else (self._detokenizer, self._held, "")
        ending = held + detokenizer.rest()
        ending = ending[: self._first_stop(ending)]
        return self._say(ending.removeprefix(said) if ending.startswith(said) else "")

    def __repr__(self) -> str:
        state = "stopped" if self._is_stopped else "finished" if self._is_finished else "open"
        return f"<TextStream {state}, {len(self.text)} characters, held {self._held!r}>"

    def _say(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece

    def _split(self, text: str) -> tuple[str, str]:
        """What can be said of ``text``, and its end that a stop string may begin with."""
        cut = self._first_stop(text)
        if cut is not None:
            return text[:cut], ""
        n_held = self._possible_stop(text)
        return text[: len(text) - n_held], text[len(text) - n_held :]

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string that ``text`` completes first begins; ``stopped`` is set then."""
        found = [(text.find(stop), len(stop)) for stop in self._stop]
        complete = [(start + length, start) for start, length in found if start >= 0]
        if not complete:
            return None
        self._is_stopped = True
        return min(complete)[1]

    def _possible_stop(self, text: str) -> int:
        """The length of the longest end of ``text`` that is the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stop):
                return n
        return 0
