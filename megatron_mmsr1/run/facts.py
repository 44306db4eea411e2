"""What an advantage estimator is told of a trajectory beside its reward."""

from __future__ import annotations

from megatron_mmsr1.algorithm.parts import Rollout, RolloutTurn
from megatron_mmsr1.trajectory import Status, Trajectory

ANSWERED = (Status.ANSWERED, Status.GAVE_UP)


def facts(outline: Trajectory) -> Rollout:
    """Its assistant turns: how many tokens each has, a hash of what the tools had said before it, and whether a call that it
    made failed. An outline's turns hold those hashes (`Turn.digest`)."""
    turns: list[RolloutTurn] = []
    heard: list[str] = []
    for t in outline.turns:
        if t.role == "assistant":
            turns.append(RolloutTurn(t.end - t.start, " ".join(heard), failed=False))
            heard = []
        elif t.role == "tool":
            heard.append(t.digest)
            failed = t.tool is not None and not t.tool.status.good
            if failed and turns:
                turns[-1] = RolloutTurn(turns[-1].tokens, turns[-1].key, failed=True)
    return Rollout(tuple(turns), answered=outline.status in ANSWERED)
