"""How many examples a property test draws."""

from __future__ import annotations

import os

FAST = os.environ.get("MMSR1_FAST") == "1"  # scripts/test.sh --fast


def examples(n: int) -> int:
    """`n`, or a few where an answer within a minute is wanted; the whole suite draws all."""
    return min(n, 10) if FAST else n
