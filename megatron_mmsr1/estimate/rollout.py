"""How long a step's rollouts take on the engines, by the same roofline as `step.py`.

Prefill is arithmetic: 2 operations a weight and token, and 4 q operations a pair of tokens that attend. Decoding is memory: for
every token an engine reads its weights once for all conversations that run at a time, and the keys and values of each (Pope et
al., arXiv 2211.05102, section 2). Where arithmetic takes longer than that, as with very many conversations, it counts.
"""

from __future__ import annotations

import math

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.estimate import step
from megatron_mmsr1.estimate.batch import Batch
from megatron_mmsr1.estimate.dimensions import Dimensions
from megatron_mmsr1.estimate.engine import Share
from megatron_mmsr1.estimate.step import Rates


def rollout(cfg: RunConfig, d: Dimensions, engine: Share, b: Batch, rates: Rates) -> dict[str, float]:
    """Seconds by term, of one of `placement.engines.count` engines with as many groups each: "prefill", "pictures", "decode".

    What a group begins with is computed once, its pictures too, and so is every earlier turn (all of them engines keep). All
    trajectories are as long as the mean one, and none waits for a search.
    """
    n = conversations(cfg)
    groups = n // cfg.data.group_size
    flops, bandwidth = rates.flops * engine.gpus, rates.bandwidth * engine.gpus
    prompts, observed = groups * b.prompt, n * b.observed
    matrices = 2 * (prompts + observed) * d.layers * step.weights(d)
    # Of a prompt every token sees half of it, of what tools return all that stands before, two thirds of the whole on average.
    pairs = prompts * b.prompt / 2 + observed * b.tokens * 2 / 3
    found = {"prefill": (matrices + 4 * pairs * d.query * d.layers) / flops}
    if d.tower and b.picture:
        patches = d.tower.merge**2
        found["pictures"] = step.tower(d.tower, groups * b.picture * patches, b.picture * patches) / flops
    at_once = running(engine, b, n)
    context = b.tokens * 2 / 3
    read = engine.weights * engine.gpus + at_once * context * engine.kv_bytes_a_token * engine.gpus
    computed = 2 * at_once * (d.layers * step.weights(d) + d.vocabulary * d.hidden) + 4 * at_once * context * d.query * d.layers
    steps = n * b.sampled / at_once
    return found | {"decode": steps * max(read / bandwidth, computed / flops)}


def conversations(cfg: RunConfig) -> int:
    """Of a step, on one engine: whole groups."""
    return math.ceil(cfg.data.prompts_per_step / cfg.placement.engines.count) * cfg.data.group_size


def running(engine: Share, b: Batch, n: int) -> int:
    """How many of n conversations an engine holds at a time: all, unless its keys and values have room for fewer."""
    return n if engine.kv_tokens is None else max(1, min(n, engine.kv_tokens // b.tokens))
