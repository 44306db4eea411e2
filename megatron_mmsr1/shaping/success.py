"""What counts as a success, whatever else a reward pays for or takes off."""

from __future__ import annotations

from megatron_mmsr1.trajectory import Trajectory

HALF = 0.5


def succeeded(t: Trajectory) -> bool:
    """Whether a scored rollout is right: its reward's part `acc`, else the reward itself, is more than a half."""
    return t.reward_parts.get("acc", t.reward or 0.0) > HALF
