"""How useful a trajectory's text queries are, by a language model's verdict: a part beside accuracy, for a weighted sum, as
OpenSearch-VL gives a fifth of its reward to it.

    terms:
      - {weight: 0.8, reward: mmsearch}
      - {weight: 0.2, reward: {name: query_utility, url: "http://host:30000/v1", model: Qwen/Qwen3-32B}}
"""

from __future__ import annotations

from pydantic import Field

from megatron_mmsr1.reward._judge import JudgeSettings, Judging, last_line
from megatron_mmsr1.reward.base import bodies
from megatron_mmsr1.trajectory import Trajectory

_OPEN, _CLOSE = "<text_search>", "</text_search>"
MOST = 10


class Settings(JudgeSettings):
    name: str = "query_utility"
    without: float = Field(default=0.0, ge=0, le=1, description="the reward of a trajectory without a text query")


def read(raw: str) -> float:
    """N / 10 for `UTILITY: N` in the last line, N a whole number from 0 to 10. Raises ValueError for anything else."""
    said = last_line(raw, "UTILITY").removesuffix(f"/{MOST}").strip()
    if not (said.isascii() and said.isdecimal()) or int(said[:4]) > MOST:
        raise ValueError(f"the utility is {said[:80]!r}, not a whole number from 0 to {MOST}")
    return int(said) / MOST


class QueryUtility(Judging):
    """reward in [0, 1], a tenth of the judge's mark of all text queries together; `without` where there is none, and nobody is
    asked then. `queries`: how many."""

    Settings = Settings
    NAME = "query_utility"
    read = staticmethod(read)

    async def parts(self, trajectory: Trajectory) -> dict[str, float]:
        asked = queries(trajectory)
        listed = "\n".join(f"{n}. {' '.join(q.split())}" for n, q in enumerate(asked, 1))
        value = await self.value(trajectory, listed) if asked else self.settings.without
        return {"reward": value, "queries": float(len(asked))}


REWARD = QueryUtility


def queries(trajectory: Trajectory) -> list[str]:
    """The text queries that were made, in their order; of a conversation without tool calls (`Reward.score`) what its turns
    hold between search tags."""
    made = [c.query for c in trajectory.observed_calls if c.kind == "text" and c.query.strip()]
    if made or trajectory.observed_calls:
        return made
    texts = (t.rpartition(_OPEN)[2].partition(_CLOSE) for t in bodies(trajectory) if _OPEN in t)
    return [q.strip() for q, close, _ in texts if close and q.strip()]
