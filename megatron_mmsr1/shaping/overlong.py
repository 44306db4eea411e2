"""Overlong shaping and filtering (DAPO, arXiv 2503.14476, section 3.4 and equation 13).

Lengths are sampled tokens of a whole conversation, and the limit is `ProtocolConfig.sampled_limit`: what the tools say is not
the model's doing. Rewards of dumps and metrics stay as they were scored; only the advantage is told of these.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.trajectory import Status, Trajectory


def length_penalty(sampled: int, limit: int, buffer: int, penalty: float) -> float:
    """What is added to the reward: 0 up to `limit` - `buffer` tokens, -`penalty` from `limit` on, linear between; 0 without a
    buffer."""
    if not buffer:
        return 0.0
    return -penalty * min(1.0, max(0, sampled - (limit - buffer)) / buffer)


def shaped_reward(t: Trajectory, cfg: RunConfig) -> float:
    """The reward that the advantage is told; of an outline too."""
    o = cfg.shaping.overlong
    return float(t.reward or 0.0) + length_penalty(t.sampled_tokens, cfg.protocol.sampled_limit, o.buffer, o.penalty)


def filtered(t: Trajectory, cfg: RunConfig) -> bool:
    """Whether no token of it is trained on, though its group's baseline has it: it ran out of tokens."""
    return cfg.shaping.overlong.filter and t.status is Status.OUT_OF_TOKENS


def metrics(scored: Sequence[Trajectory], cfg: RunConfig) -> dict[str, float]:
    """shaping/overlong, the mean penalty (0 or less), and shaping/filtered, the share that is filtered; those that are on."""
    o, n = cfg.shaping.overlong, max(len(scored), 1)
    out: dict[str, float] = {}
    if o.buffer:
        limit = cfg.protocol.sampled_limit
        out["shaping/overlong"] = sum(length_penalty(t.sampled_tokens, limit, o.buffer, o.penalty) for t in scored) / n
    if o.filter:
        out["shaping/filtered"] = sum(filtered(t, cfg) for t in scored) / n
    return out
