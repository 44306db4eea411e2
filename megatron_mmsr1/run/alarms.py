"""Does training go wrong? Each alarm is a pure function of the last rows of metrics; docs/operations.md says what to do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_mmsr1.config import RunConfig

Row = Mapping[str, float | None]
PREFIX = "alarm/"  # of the metric that is 1.0 while an alarm stands
LOSS_NOISE = 0.01  # smaller distances of a loss from its median are taken for this one: on-policy it may be 0 but for rounding


@dataclass(frozen=True, slots=True)
class Alarm:
    """`fault`: what is wrong with the last of the rows (oldest first), "" for nothing. `sudden`: one such step is enough for it
    to begin. `demonstrations`: also told of a supervised run."""

    name: str
    fault: Callable[[Sequence[Row], RunConfig], str]
    sudden: bool = False
    demonstrations: bool = False

    @property
    def metric(self) -> str:
        return PREFIX + self.name


def rows_needed(cfg: RunConfig) -> int:
    """How many rows `judge` looks back on."""
    return cfg.alarms.window + cfg.alarms.steps + 1


def judge(rows: Sequence[Row], cfg: RunConfig) -> tuple[dict[str, float], dict[str, str], list[str]]:
    """(metrics of the last of the rows, oldest first; what has just begun to be wrong, by alarm; alarms that are just over).

    The metrics are alarm/NAME, 1.0 while it stands and 0.0 else, and `alarms`, how many stand. Whether one stood before is read
    from the row before, so that a resumed run neither repeats itself nor forgets.
    """
    before = rows[-2] if len(rows) > 1 else {}
    told, begun, over = dict[str, float](), dict[str, str](), list[str]()
    for alarm in ALARMS:
        if cfg.algorithm.supervised and not alarm.demonstrations:
            continue
        stood = bool(before.get(alarm.metric))
        stands = _stands(alarm, rows, cfg, stood)
        told[alarm.metric] = float(stands)
        if stands and not stood:
            begun[alarm.name] = alarm.fault(rows, cfg)
        elif stood and not stands:
            over.append(alarm.name)
    return told | {"alarms": sum(told.values())}, begun, over


def _stands(alarm: Alarm, rows: Sequence[Row], cfg: RunConfig, stood: bool) -> bool:
    """One that stands is over when none of the last steps is at fault; one that does not begins when all of them are."""
    latest = cfg.alarms.steps if stood or not alarm.sudden else 1
    faults = [bool(alarm.fault(rows[: len(rows) - k], cfg)) for k in range(min(latest, len(rows)))]
    return any(faults) if stood else len(faults) == latest and all(faults)


# ----------------------------------------------------------------------------------------------------------------- alarms
def _invalid_turns(rows: Sequence[Row], cfg: RunConfig) -> str:
    made = _value(rows[-1], "trajectories")
    share = (_value(rows[-1], "status/invalid") or 0.0) / made if made else 0.0
    limit = cfg.alarms.invalid_turns
    if share <= limit:
        return ""
    return f"{share:.0%} of the trajectories end in a turn without an action, over alarms.invalid_turns={limit:g}"


def _entropy(rows: Sequence[Row], cfg: RunConfig) -> str:
    value, limit = _value(rows[-1], "entropy"), cfg.alarms.entropy
    if value is None or value >= limit:
        return ""
    return f"the entropy is {value:.2g} nats a token, below alarms.entropy={limit:g}: the policy hardly explores"


def _equal_groups(rows: Sequence[Row], cfg: RunConfig) -> str:
    share, limit = _value(rows[-1], "groups/equal"), cfg.alarms.equal_groups
    if share is None or share <= limit:
        return ""
    return f"{share:.0%} of the groups have one reward for all of their rollouts, over alarms.equal_groups={limit:g}"


def _length(rows: Sequence[Row], cfg: RunConfig) -> str:
    now, usual = _value(rows[-1], "tokens/sampled"), _median(rows, "tokens/sampled", cfg)
    factor = cfg.alarms.length
    if now is None or not usual or usual / factor <= now <= usual * factor:
        return ""
    return (
        f"{now:.0f} sampled tokens a trajectory, where {usual:.0f} were usual: more than alarms.length={factor:g} times apart"
    )


def _calls(rows: Sequence[Row], cfg: RunConfig) -> str:
    p, a, share = cfg.protocol, cfg.alarms, _value(rows[-1], "search/share")
    if share is None or not (p.image_searches or p.text_searches or cfg.tools):
        return ""
    if share < a.calls_below:
        return f"{share:.0%} of the trajectories call a tool, below alarms.calls_below={a.calls_below:g}"
    if share > a.calls_above:
        return f"{share:.0%} of the trajectories call a tool, over alarms.calls_above={a.calls_above:g}"
    return ""


def _logprob_gap(rows: Sequence[Row], cfg: RunConfig) -> str:
    gap, limit = _value(rows[-1], "logprob_diff_mean"), cfg.algorithm.logprob_alarm
    if gap is None or gap <= limit:
        return ""
    return (
        f"trainer and engine log-probs differ by {gap:.2e} on average, over algorithm.logprob_alarm={limit:g}: the engine may "
        "hold other weights or other kernels"
    )


def _grad_norm(rows: Sequence[Row], cfg: RunConfig) -> str:
    now, usual = _value(rows[-1], "grad_norm"), _median(rows, "grad_norm", cfg)
    if now is None or not usual or now <= cfg.alarms.spike * usual:
        return ""
    return f"the gradient norm is {now:.3g}, where {usual:.3g} was usual: more than alarms.spike={cfg.alarms.spike:g} times"


def _loss(rows: Sequence[Row], cfg: RunConfig) -> str:
    now, usual = _value(rows[-1], "loss"), _median(rows, "loss", cfg)
    if now is None or usual is None:
        return ""
    spread = max(LOSS_NOISE, statistics.median(abs(v - usual) for v in _before(rows, "loss", cfg)))
    if abs(now - usual) <= cfg.alarms.spike * spread:
        return ""
    return (
        f"the loss is {now:.3g}, where {usual:.3g} was usual and {spread:.2g} the usual distance from it: more than "
        f"alarms.spike={cfg.alarms.spike:g} times that"
    )


def _skipped(rows: Sequence[Row], cfg: RunConfig) -> str:
    count = _value(rows[-1], "skipped_updates")
    if not count:
        return ""
    return f"{count:.0f} optimizer updates of the step were skipped: their gradients are not finite (nonfinite/ says whose)"


def _checkpoint(rows: Sequence[Row], cfg: RunConfig) -> str:
    count = _value(rows[-1], "checkpoint_failures")
    if not count:
        return ""
    most = cfg.train.checkpoint_failures
    return (
        f"{count:.0f} checkpoints in a row were not written, of train.checkpoint_failures={most} that may be: run.log says why"
    )


ALARMS = (
    Alarm("invalid_turns", _invalid_turns),
    Alarm("entropy", _entropy),
    Alarm("equal_groups", _equal_groups),
    Alarm("length", _length),
    Alarm("calls", _calls),
    Alarm("logprob_gap", _logprob_gap, sudden=True),
    Alarm("grad_norm", _grad_norm, sudden=True, demonstrations=True),
    Alarm("loss", _loss, sudden=True, demonstrations=True),
    Alarm("skipped", _skipped, sudden=True, demonstrations=True),
    Alarm("checkpoint", _checkpoint, sudden=True, demonstrations=True),
)


def _value(row: Row, metric: str) -> float | None:
    """None where the row has no finite one."""
    value = row.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _before(rows: Sequence[Row], metric: str, cfg: RunConfig) -> list[float]:
    """The values of the window before the last row."""
    return [v for r in rows[-1 - cfg.alarms.window : -1] if (v := _value(r, metric)) is not None]


def _median(rows: Sequence[Row], metric: str, cfg: RunConfig) -> float | None:
    """Of the window before the last row; None while less than half of it is there."""
    values = _before(rows, metric, cfg)
    return statistics.median(values) if 2 * len(values) >= cfg.alarms.window else None
