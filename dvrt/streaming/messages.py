"""What two ends of a link say to each other; KV bytes travel as regions beside ``Parcel``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from dvrt.errors import ConfigError
from dvrt.kv.layout import is_same_dtype
from dvrt.streaming.headers import pack
from dvrt.streaming.terms import Outline, Terms
from dvrt.wire import message

PROTOCOL_VERSION = 4
MAX_TOGETHER = 64
"""Small messages that leave as one at most."""
MAX_NAME = 1024
"""Characters of a stream's name."""
MAX_REASON = 4000
"""Characters of a reason that travel."""
MAX_INCARNATION = (1 << 32) - 1
"""Generations contain it, and have 64 bits."""


class Grouping(Enum):
    """What one parcel holds: a contiguous run, a layer, or all layers of a copy."""

    RUNS = "runs"
    LAYERS = "layers"
    WHOLE = "whole"


@message("stream.setup", version=2)
class Setup:
    """What both ends must agree on before a byte of KV moves.

    ``dtype`` names the type of an element, such as "float16", and is compared where both ends
    name it; as many bytes of another type would be wrong KV that no digest tells.
    """

    model: str
    n_layers: int
    n_heads: int
    dim: int
    item_bytes: int
    dtype: str = ""


def ensure_incarnation(number: int) -> None:
    """Raise ValueError unless generations of this incarnation fit a message."""
    if not 0 <= number <= MAX_INCARNATION:
        raise ValueError(f"incarnation {number}: expected 0 to {MAX_INCARNATION}")


@message("stream.hello", version=2)
class Hello:
    """The first message of each end. ``window_bytes``: how much it accepts before it has acted.

    ``is_verified``: its parcels carry digests, and it takes none without.
    """

    version: int
    setup: Setup
    incarnation: int
    window_bytes: int
    is_verified: bool = True

    def __post_init__(self) -> None:
        ensure_incarnation(self.incarnation)


@message("stream.offer", version=2)
class Offer:
    """A stream that the sender would begin; parcels are cut as ``grouping`` and limit say.

    ``terms``: what its bytes mean; None where nobody compares it.
    """

    stream: str
    epoch: int
    grouping: Grouping
    max_parcel_bytes: int
    terms: Terms | None = None

    def __post_init__(self) -> None:
        if len(self.stream) > MAX_NAME:
            raise ConfigError(f"a stream's name of {len(self.stream)} characters; limit {MAX_NAME}")


@message("stream.grant")
class Grant:
    """The receiver is ready; everything of the stream names this generation.

    ``proved`` is the last step that it has already, from a link before this one; -1: none.
    """

    stream: str
    epoch: int
    generation: int
    proved: int = -1


@message("stream.parcel")
class Parcel:
    """A piece of a packed box, ``offset`` bytes into it; the piece itself travels as regions.

    ``sequence`` counts the link's parcels; ``digest`` 0: not computed.
    """

    stream: str
    epoch: int
    generation: int
    step: int
    index: int
    offset: int
    sequence: int
    digest: int


@message("stream.credit")
class Credit:
    """The receiver is done with parcel ``sequence``."""

    sequence: int


@message("stream.commit", version=2)
class Commit:
    """What the sender says a step consisted of; nothing of it is used before this is checked."""

    stream: str
    epoch: int
    generation: int
    step: int
    chunks: int
    nbytes: int
    digest: int
    outline: Outline | None = None


@message("stream.stored")
class Stored:
    """The receiver has the step and found it to be what the commit record says."""

    stream: str
    epoch: int
    generation: int
    step: int


@message("stream.over")
class Over:
    """No more of this stream from the side that says so, which is its sender or its receiver: each
    has a stream of this name of its own. ``reason`` is empty when all is well."""

    stream: str
    epoch: int
    generation: int
    is_from_sender: bool
    reason: str
    is_corrupted: bool = False

    def __post_init__(self) -> None:
        if len(self.reason) > MAX_REASON:
            raise ConfigError(f"a reason of {len(self.reason)} characters; limit {MAX_REASON}")


def over(
    key: tuple[str, int],
    generation: int,
    *,
    is_from_sender: bool,
    reason: str,
    is_corrupted: bool = False,
) -> Over:
    """The end of a stream, by its name and epoch; a long reason is cut."""
    name, epoch = key
    return Over(
        stream=name,
        epoch=epoch,
        generation=generation,
        is_from_sender=is_from_sender,
        reason=reason[:MAX_REASON],
        is_corrupted=is_corrupted,
    )


Said = Offer | Grant | Parcel | Credit | Commit | Stored | Over
"""What ends of a link say once they have greeted each other."""


@message("stream.together")
class Together:
    """Messages in their order, sent as one; regions beside it are those of a Parcel at its end."""

    messages: tuple[Said, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("no message")


def joined(messages: Sequence[Said]) -> bytes:
    """The header of one message or more."""
    is_one = len(messages) == 1
    return pack(messages[0] if is_one else Together(messages=tuple(messages)))


def ensure_agreement(mine: Hello, theirs: Hello) -> None:
    """Raise ConfigError naming the first field in which the two ends differ, or that is absurd."""
    if mine.version != theirs.version:
        raise ConfigError(f"protocol version differs: {mine.version} here, {theirs.version} there")
    for name in ("model", "n_layers", "n_heads", "dim", "item_bytes"):
        here, there = getattr(mine.setup, name), getattr(theirs.setup, name)
        if here != there:
            raise ConfigError(f"{name} differs: {here!r} here, {there!r} there")
    here, there = mine.setup.dtype, theirs.setup.dtype
    if not is_same_dtype(here, there):
        raise ConfigError(f"dtype differs: {here!r} here, {there!r} there")
    here, there = mine.is_verified, theirs.is_verified
    if here != there:
        raise ConfigError(f"is_verified differs: {here} here, {there} there")
    if theirs.window_bytes < 1:
        raise ConfigError(f"window_bytes is {theirs.window_bytes} there; nothing could be sent")
