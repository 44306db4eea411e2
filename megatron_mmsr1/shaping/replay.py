"""Replay of rare successes: a right rollout of a question that is seldom got right joins a later group that has none."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_mmsr1.shaping.refill import varied


def rare(right: Sequence[bool], threshold: float) -> bool:
    """Whether a group has successes, and at most this share of its rollouts."""
    return 0 < sum(right) <= threshold * len(right)


def wants(rewards: Sequence[float], kept: float) -> bool:
    """Whether a kept rollout of reward `kept` joins a group of these: they are all equal, so that it has no gradient of its
    own, and lower."""
    return bool(rewards) and not varied(rewards) and rewards[0] < kept
