"""Dynamic sampling with refill (DAPO, arXiv 2503.14476, section 3.2): further prompts, until enough groups have variance.

Unlike there nothing that was sampled is thrown away: what is more than a step trains on is carried to the next (`run/kept.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 4  # a round asks for at most this many times the groups that a step trains on


def varied(rewards: Sequence[float]) -> bool:
    """Whether a group of these rewards has a policy gradient: they are not all equal."""
    return len(set(rewards)) > 1


def first_round(wanted: int, carried: int, multiple: int) -> int:
    """Prompts that a step begins with: those that the carried groups leave to be found, at least half of `wanted`, so that a
    step's shares (of failures, of rewards) are told from many."""
    return _up(max(wanted - carried, -(-wanted // 2)), multiple)


def next_round(wanted: int, have: int, drawn: int, live: int, multiple: int) -> int:
    """Prompts to draw next, a multiple of `multiple`: those missing over the share of the step's `drawn` prompts that were
    live, at most MOST * `wanted`; 0 if `have` of `wanted` groups suffice."""
    missing = wanted - have
    if missing <= 0:
        return 0
    expected = -(-missing * drawn // live) if live else MOST * wanted
    return _up(min(expected, MOST * wanted), multiple)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
