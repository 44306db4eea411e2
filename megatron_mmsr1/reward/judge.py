"""MMSearch-R1's reward with a language model's verdict in place of the exact match (the ablation of arXiv 2506.20670).

    reward: {name: judge, url: "http://host:30000/v1", model: Qwen/Qwen3-32B}

The judge reads question, golden answers and the inside of the last `<answer>`, not the picture. A turn without an answer is
wrong, and nobody is asked.
"""

from __future__ import annotations

from megatron_mmsr1.reward._judge import JudgeSettings, Judging, last_line
from megatron_mmsr1.reward.base import bodies
from megatron_mmsr1.reward.mmsearch import Prices, answer_of, priced
from megatron_mmsr1.trajectory import Trajectory


class Settings(Prices, JudgeSettings):
    name: str = "judge"


def read(raw: str) -> float:
    """1 for `VERDICT: correct` in the last line, 0 for `VERDICT: incorrect`. Raises ValueError for anything else."""
    said = last_line(raw, "VERDICT")
    if said not in ("correct", "incorrect"):
        raise ValueError(f"the verdict is {said[:80]!r}, not correct or incorrect")
    return float(said == "correct")


class Judge(Judging):
    """`mmsearch` with the judge's verdict as acc: (1 - format_penalty) * acc * (1 - search_penalty, if it searched) +
    format_penalty * format."""

    Settings = Settings
    NAME = "judge"
    read = staticmethod(read)

    async def parts(self, trajectory: Trajectory) -> dict[str, float]:
        turns = bodies(trajectory)
        answer = answer_of(turns[-1]) if turns else None
        acc = await self.value(trajectory, answer) if answer and answer.strip() else 0.0
        return priced(turns, acc, **self.settings.prices(trajectory.step))


REWARD = Judge
