"""What a run notices of its search tools: which snapshot answers, how many calls fail, what is spent, and when to stop.

The rollout worker pauses by itself (rollout/throttle.py); here it is said, counted, and put into the run's logs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.rollout.jobs import Progress, now_and_then
from megatron_mmsr1.search.server.launch import ask, identity
from megatron_mmsr1.trajectory import ToolStatus, Trajectory

CALM_S = 10.0  # without a pause, after which an outage has ended
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
        clock: Callable[[], float] = time.monotonic,
    ):
        self.url, self._cfg, self._warn, self._info, self._beat = url, cfg, warn, info, beat
        self._last = (-1, False)  # what the worker last told: trajectories that have ended, whether it pauses
        self._tell = now_and_then(info)
        self._clock = clock
        self._unreadable = 0  # statistics of the server that could not be understood
        self._paused = False
        self._pauses = 0  # of the outage that was told; 0: none is under way
        self._before_s = 0.0  # pauses before that outage
        self._calm_since = 0.0
        self.paused_s = 0.0  # of this rank's worker, since it began
        self._longest_s = 0.0
        self._reported_s = 0.0

    def identity(self) -> dict[str, Any]:
        """As `search.server.launch.identity` has it."""
        return identity(self.url)

    def heard(self, progress: Progress) -> None:
        """The worker's progress, said now and then. An outage is said when it begins and when it has ended: pauses that follow
        each other within CALM_S are one."""
        if (now := (progress.done, progress.paused)) != self._last:  # that the worker lives is no beat: it may wait for ever
            self._last = now
            self._beat()
        self._tell(progress)
        self.paused_s = progress.paused_s
        began = progress.paused and not self._paused
        if self._paused and not progress.paused:
            self._calm_since = self._clock()
        self._paused = progress.paused
        if began and not self._pauses:
            self._before_s = progress.paused_s
            self._warn(
                f"rollout paused: {progress.failing:.0%} of the latest search calls failed (rollout.pause_above="
                f"{self._cfg.rollout.pause_above:g}); it goes on when one is answered. mmsr1 search stats {self.url} says more"
            )
        self._pauses += began
        if self._clock() - self._calm_since >= CALM_S:
            self._outage_ended()

    def _outage_ended(self) -> None:
        if self._pauses and not self._paused:
            n, seconds = self._pauses, self.paused_s - self._before_s
            self._info(f"rollout goes on: search answers again ({n} pause{'s' * (n > 1)}, {seconds:.0f} s in all)")
            self._pauses = 0

    def pauses_of_all(self, longest_s: float) -> None:
        """The longest pauses of any leader's worker so far: a step waits for the slowest of them."""
        self._longest_s = longest_s

    def step(self, step: int, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Metrics of a finished step: search_server/... from the server's own counts, search/paused_s. Warns above
        `rollout.alert_above`, and of calls that a budget refused."""
        self._outage_ended()  # whatever is calm at a step's end is told with it
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
        """{} where no server tells. What tells in another form than ours is said once and counted: the curves have a gap."""
        try:
            return _counts(ask(self.url, "/v1/stats"))
        except (KeyError, TypeError, AttributeError) as e:
            self._unreadable += 1
            if self._unreadable == 1:
                self._warn(
                    f"{self.url}/v1/stats is not as this version of the search server writes it ({type(e).__name__}: {e}): "
                    "search_server/... is missing from the metrics, and search/stats_unreadable counts the steps. Is it of "
                    "another version, or another program?"
                )
            return {"search/stats_unreadable": self._unreadable}


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
