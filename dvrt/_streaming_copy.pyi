"""What ``transport/streaming_copy.c`` gives."""

from typing_extensions import Buffer

def copy(target: Buffer, source: Buffer, /) -> None:
    """Fill ``target`` with ``source``, past the caches. Raises ValueError for unequal sizes."""
