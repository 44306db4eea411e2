"""What a run notices of its search tools: which snapshot answers, how many calls fail, what is spent, and when to stop.

The rollout worker pauses by itself (rollout/throttle.py); here it is said, counted, and put into the run's logs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.rollout.jobs import Progress, now_and_then
from megatron_mmsr1.search.server.launch import ask, identity
from megatron_mmsr1.trajectory import ToolStatus, Trajectory

STEP_CAP = "search.budget.step_"  # how the server's word of a reached cap begins; a step's own cap ends with the step


class SearchWatch:
    """`url` None: the run searches nothing. `warn` and `info` say a line to the person; `beat` is called when the worker is
    heard."""

    def __init__(
        self,
        url: str | None,
        cfg: RunConfig,
        warn: Callable[[str], None],
        info: Callable[[str], None],
        beat: Callable[[], None] = lambda: None,
    ):
        self.url, self._cfg, self._warn, self._info, self._beat = url, cfg, warn, info, beat
        self._tell = now_and_then(info)
        self._paused = False
        self.paused_s = 0.0  # of this rank's worker, since it began
        self._longest_s = 0.0
        self._reported_s = 0.0

    def identity(self) -> dict[str, Any]:
        """As `search.facts.identity` has it."""
        return identity(self.url)

    def heard(self, progress: Progress) -> None:
        """The worker's progress: said now and then; a pause when it begins and when it ends."""
        self._beat()
        self._tell(progress)
        self.paused_s = progress.paused_s
        if progress.paused == self._paused:
            return
        self._paused = progress.paused
        if progress.paused:
            self._warn(
                f"rollout paused: {progress.failing:.0%} of the latest search calls failed (rollout.pause_above="
                f"{self._cfg.rollout.pause_above:g}); it goes on when one is answered. mmsr1 search stats {self.url} says more"
            )
        else:
            self._info(f"rollout goes on: search answers again ({progress.paused_s:.0f} s of pauses so far)")

    def pauses_of_all(self, longest_s: float) -> None:
        """The longest pauses of any leader's worker so far: a step waits for the slowest of them."""
        self._longest_s = longest_s

    def step(self, step: int, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Metrics of a finished step: search_server/... from the server's own counts, search/paused_s. Warns above
        `rollout.alert_above`, and of calls that a budget refused."""
        paused_s = max(self.paused_s, self._longest_s)
        out = {"search/paused_s": paused_s - self._reported_s}
        self._reported_s = paused_s
        calls = [c for t in trajectories for c in t.tool_calls]
        failed = sum(c.status.infrastructure for c in calls)
        if calls and failed / len(calls) > self._cfg.rollout.alert_above:
            kinds = {s: n for s in ToolStatus if s.infrastructure and (n := sum(c.status is s for c in calls))}
            shown = ", ".join(f"{n} {s.value}" for s, n in kinds.items())
            example = next(c.detail for c in calls if c.status.infrastructure)
            self._warn(
                f"step {step}: {failed} of {len(calls)} search calls failed ({shown}), over rollout.alert_above="
                f"{self._cfg.rollout.alert_above:g}; their trajectories are not trained on. One of them: {example}"
            )
        return out | self._server_metrics()

    def _server_metrics(self) -> dict[str, float]:
        try:
            return _counts(ask(self.url, "/v1/stats"))
        except (KeyError, TypeError, AttributeError):  # a server of another make has statistics of its own
            return {}


def budget_reached(trajectories: Sequence[Trajectory]) -> str:
    """Which cap of the run, the day or the vendor's account refused a call of this step, in the server's words; "" for none.

    To train on would teach from what needed no search alone. A step's cap is the person's own choice of that, and ends with it.
    """
    for t in trajectories:
        for c in t.tool_calls:
            if c.status is ToolStatus.BUDGET and not c.detail.startswith(STEP_CAP):
                return c.detail or "a search backend's account is used up"
    return ""


def _counts(stats: dict[str, Any]) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, up in stats.get("upstreams", {}).items():
        me = f"search_server/{name}"
        out |= {f"{me}/{status}": n for status, n in up["statuses"].items()}
        out |= {f"{me}/breaker_{state}": up["breaker_turns"][state] for state in ("open", "closed")}
        out |= {f"{me}/retries": up["retries"], f"{me}/usd": up["usd"]}
    if stats:
        out["search_server/entries"] = sum(stats["snapshot"]["entries"].values())
    return out
