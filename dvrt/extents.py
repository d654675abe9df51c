"""How many positions of the KV log a row keeps: what a launch allocates, and a plan counts."""

from __future__ import annotations

EXTENT_TOKENS = 64
"""Attention reads the KV log up to the next multiple of this many tokens, the rest masked."""


def row_tokens(context: int, chunk_tokens: int) -> int:
    """Positions of a row: whole chunks, in whole extents, and one extent of scratch."""
    chunks = -(-context // chunk_tokens) * chunk_tokens
    return -(-chunks // EXTENT_TOKENS) * EXTENT_TOKENS + EXTENT_TOKENS
