"""Which trajectories of a step can be trained on, and why there may be none: a step without any ends the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.trajectory import Trajectory


def scored(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Those with a reward that no engine and no tool has failed."""
    return [t for t in trajectories if t.reward is not None and not t.infrastructure_failure]


def require_rewards(made: Sequence[Trajectory], step: int, min_success: float) -> None:
    """RunError if the reward failed for more than 1 - `min_success` of the trajectories of step `step` that it was asked about:
    a judge that is down must not choose what is trained on. Outlines will do."""
    asked = [t for t in made if not t.infrastructure_failure]
    failed = [str(t.extra["reward_error"]) for t in asked if "reward_error" in t.extra]
    if failed and len(asked) - len(failed) < min_success * len(asked):
        raise RunError(
            f"step {step}: the reward answered for {len(asked) - len(failed)} of {len(asked)} trajectories, fewer than its "
            f"min_success of {min_success:g}; the first failure: {failed[0]}"
        )


def require_something(good: Sequence[Trajectory], made: Sequence[Trajectory], step: int, out: Path) -> None:
    """RunError if nothing was scored or nothing was sampled in step `step`: a run would go on without learning anything.

    `good`: `scored` of `made`, all of the step's trajectories; outlines will do. `out`: the run's directory, for the message.
    """
    failed = [str(t.extra["reward_error"]) for t in made if "reward_error" in t.extra]
    if not good and failed:
        raise RunError(f"no trajectory of step {step} has a reward; {len(failed)} times the reward failed: {failed[0]}")
    if not good:
        raise RunError(
            f"all {len(made)} trajectories of step {step} failed in the engine or the search server; see {out}/logs and the "
            "rollout dump"
        )
    if not any(t.sampled_tokens for t in good):
        ends = ", ".join(f"{n} {status}" for status, n in Counter(str(t.status) for t in good).most_common())
        raise RunError(
            f"step {step}: not one token was sampled in {len(good)} trajectories ({ends}): there is nothing to train on. Raise "
            "protocol.max_prompt_tokens or protocol.max_response_tokens, or lower model.max_pixels"
        )
