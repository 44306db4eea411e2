"""What a batch of trajectories says about the policy, its tools and the machinery, as flat numbers for the logs.

Two kinds of trajectory are told apart. *Scored* ones (a reward is set) speak for the model: reward, accuracy, search. The
others ended in an engine or tool failure and are only counted, under `infrastructure/`.

The search ratio has two definitions in use, and both are here: `search/share`, the share of responses that search, and
`search/ratio`, calls made / calls allowed (MMSearch-R1's table). Where three rounds allow two calls, a model that makes one
call in every response has share 1 and ratio 1/2.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from megatron_mmsr1.config import ProtocolConfig
from megatron_mmsr1.shaping.refill import varied
from megatron_mmsr1.trajectory import Trajectory, by_group


def calls_allowed(protocol: ProtocolConfig) -> int:
    """Searches a trajectory may make: its limits a tool, and one a round but for the last, which must answer."""
    return max(1, min(protocol.image_searches + protocol.text_searches, protocol.max_rounds - 1))


def mean(values: Iterable[float]) -> float:
    """Of at least one number; statistics.fmean's StatisticsError otherwise."""
    return statistics.fmean(values)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share of `n` > 0 independent yes-or-no answers; 95 % by default."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(scored: Sequence[Trajectory], protocol: ProtocolConfig) -> dict[str, float]:
    """n, reward, accuracy, format, search share and ratio of at least one scored trajectory; all means in [0, 1] but reward."""
    return {
        "n": len(scored),
        "reward": mean(t.reward or 0.0 for t in scored),
        "accuracy": mean(t.reward_parts.get("acc", 0.0) for t in scored),
        "format": mean(t.reward_parts.get("format", 0.0) for t in scored),
        "search_share": mean(float(t.searched) for t in scored),
        "search_ratio": mean(len(t.observed_calls) / (t.calls_allowed or calls_allowed(protocol)) for t in scored),
    }


def tool_shares(scored: Sequence[Trajectory]) -> dict[str, float]:
    """Share of responses that call each tool, by its name, over at least one trajectory. A tool that none calls is left out."""
    counts = Counter(name for t in scored for name in set(t.called))
    return {name: n / len(scored) for name, n in sorted(counts.items())}


def kind(t: Trajectory) -> str:
    """The finest label that the data give: Atlas's kind, else the category, else "all"."""
    return str(t.extra.get("kind") or t.category or "all")


# Atlas's kinds as a person reads them, from no tool to two; a name that is not here comes after, in the alphabet's order.
ORDER = ("known", "picture", "search_free", "crop", "crop_required", "image", "text", "both", "search_required")


def by_kind(trajectories: Iterable[Trajectory]) -> dict[str, list[Trajectory]]:
    """Grouped by `kind`, in `ORDER`."""
    groups: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        groups.setdefault(kind(t), []).append(t)
    return dict(sorted(groups.items(), key=lambda g: (ORDER.index(g[0]) if g[0] in ORDER else len(ORDER), g[0])))


def scored(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    return [t for t in trajectories if t.reward is not None]


def rollout_metrics(trajectories: Sequence[Trajectory], protocol: ProtocolConfig) -> dict[str, float]:
    """Flat metrics of one step's rollouts.

    reward/{mean,std,acc,format} and reward/PART for every other part that a reward gives, the mean over those that have it;
    groups/equal, the share of groups whose rollouts all have one reward; search/{share,ratio} and the same under
    `category/NAME/` and `kind/NAME/` with acc and reward; status/NAME and tool/NAME
    counts; tool/calls_KIND counts and tool/share_NAME, the share of trajectories that ask for that tool;
    infrastructure/{trajectories,rewards,calls,share}; turns/{1,2,...} counts and turns/mean;
    tokens/{trajectory,sampled,observed} means; images/trajectory. Names whose count is zero are left out, but for
    infrastructure. Calls without an observation count as calls. An empty batch gives {"trajectories": 0}.
    """
    if not trajectories:
        return {"trajectories": 0}
    good = scored(trajectories)
    out: dict[str, float] = {"trajectories": len(trajectories)}
    if good:
        rewards = [t.reward or 0.0 for t in good]
        s = summary(good, protocol)
        for part in sorted({k for t in good for k in t.reward_parts}):
            out[f"reward/{part}"] = mean(t.reward_parts[part] for t in good if part in t.reward_parts)
        out |= {
            "reward/mean": s["reward"],
            "reward/std": statistics.pstdev(rewards),
            "reward/acc": s["accuracy"],
            "reward/format": s["format"],
            "search/share": s["search_share"],
            "search/ratio": s["search_ratio"],
        }
        out |= _equal_groups(good)
        categories = sorted({t.category for t in good if t.category})
        out |= _parts("category", {c: [t for t in good if t.category == c] for c in categories}, protocol)
        out |= _parts("kind", by_kind(t for t in good if t.extra.get("kind")), protocol)
    out |= _counts(trajectories)
    return out


def throughput(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    """rollout/tokens_per_s (sampled tokens; observations are not generated) and rollout/trajectories_per_s, over `seconds`."""
    sampled = sum(t.sampled_tokens for t in trajectories)
    return {"rollout/tokens_per_s": sampled / seconds, "rollout/trajectories_per_s": len(trajectories) / seconds}


def _equal_groups(scored: Sequence[Trajectory]) -> dict[str, float]:
    """groups/equal, of the groups with two scored rollouts or more; {} without any."""
    several = [[t.reward or 0.0 for t in g] for g in by_group(scored).values() if len(g) > 1]
    return {"groups/equal": mean(float(not varied(g)) for g in several)} if several else {}


def _parts(prefix: str, groups: dict[str, list[Trajectory]], protocol: ProtocolConfig) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, members in groups.items():
        s = summary(members, protocol)
        out |= {
            f"{prefix}/{name}/acc": s["accuracy"],
            f"{prefix}/{name}/reward": s["reward"],
            f"{prefix}/{name}/search_share": s["search_share"],
            f"{prefix}/{name}/search_ratio": s["search_ratio"],
        }
        out |= {f"{prefix}/{name}/{tool}_share": share for tool, share in tool_shares(members).items()}
    return out


def _counts(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    calls = [c for t in trajectories for c in t.tool_calls]
    turns = [len(t.assistant_texts) for t in trajectories]
    broken = [c for c in calls if c.status.infrastructure]
    failed = [t for t in trajectories if t.infrastructure_failure]
    out: dict[str, float] = {}
    out |= {f"status/{s.value}": n for s, n in sorted(Counter(t.status for t in trajectories).items())}
    out |= {f"tool/{s.value}": n for s, n in sorted(Counter(c.status for c in calls).items())}
    asked = Counter(name for t in trajectories for name in set(t.called))
    out |= {f"tool/share_{name}": n / len(trajectories) for name, n in sorted(asked.items())}
    out |= {f"tool/calls_{k}": n for k, n in sorted(Counter(c.kind for c in calls).items())}
    if calls:
        out["tool/seconds"] = mean(c.seconds for c in calls)
        out["tool/cached"] = mean(float(c.cached) for c in calls)
    out["infrastructure/trajectories"] = len(failed)
    out["infrastructure/rewards"] = sum("reward_error" in t.extra for t in trajectories)
    out["infrastructure/calls"] = len(broken)
    out["infrastructure/share"] = len(failed) / len(trajectories)
    out |= {f"turns/{n}": count for n, count in sorted(Counter(turns).items())}
    out["turns/mean"] = mean(turns)
    out["tokens/trajectory"] = mean(len(t) for t in trajectories)
    out["tokens/sampled"] = mean(t.sampled_tokens for t in trajectories)
    out["tokens/observed"] = mean(sum(u.end - u.start for u in t.turns if u.role == "tool") for t in trajectories)
    out["images/trajectory"] = mean(len(t.images) for t in trajectories)
    return out
