"""How long a step takes, by a roofline (Williams, Waterman, Patterson, CACM 52(4), 2009): arithmetic over the rate of matrix
products, bytes of everything else over the bandwidth of memory, messages over that of links. Nothing overlaps: a sum, term by
term.

A product of [T, n] by [n, m] is 2 T n m operations, backward twice that. Causal attention of a sequence of s tokens is 2 q s^2
operations a layer (both products, half of the scores), backward 2.5 times that, for scores are computed again (arXiv
2307.08691, section 3.1). Collectives of n ranks by rings: each sends (n - 1) / n of the bytes in an all-gather or
reduce-scatter, twice that in an all-reduce."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.estimate.activations import Layers
from megatron_mmsr1.estimate.batch import Work
from megatron_mmsr1.estimate.dimensions import Dimensions, Tower
from megatron_mmsr1.estimate.memory import BYTES, has_reference, shard
from megatron_mmsr1.estimate.parameters import Layout, adapters_of_layer, of_stage


@dataclass(frozen=True)
class Rates:
    """`flops` a second that products reach, bytes a second that memory, links inside a node and the network between nodes
    reach: peaks times whatever share of them is assumed or was measured."""

    flops: float
    bandwidth: float
    link: float
    network: float


# Bytes of memory an optimizer step moves a parameter of the shard, and an accumulated gradient a parameter and micro-batch.
# cpu: `megatron/adam.py` reads and writes tensor by tensor: lerp 12, mul 8, addcmul 12, sqrt 8, div 8, add 8, addcdiv 16;
# norm, clipping and zeroing 16. Fused: gradient, moments and master weights once (16 read, 12 and the weight written), norm
# and zeroing 8.
UPDATE = {"cpu": 88, "transformer-engine": 38}


def step(cfg: RunConfig, d: Dimensions, at: Layout, work: Work, rates: Rates, layers: Layers) -> dict[str, float]:
    """Seconds by term of one train step of the slowest stage; `bubble`: what pipelining leaves idle."""
    found = [_stage(cfg, d, at, work, rates, layers, i) for i in range(len(at.stages))]
    each = [sum(micro.values()) for micro, _ in found]
    slowest = max(range(len(found)), key=lambda i: each[i])
    micro, once = found[slowest]
    terms = {name: s * work.count * work.updates for name, s in micro.items()}
    # 1F1B: (P - 1) micro-batches' time of the slowest stage, an update (arXiv 2104.04473, section 2.2).
    bubble = (len(at.stages) - 1) * each[slowest] * work.updates
    return terms | {name: s * work.updates for name, s in once.items()} | {"bubble": bubble}


def operations(cfg: RunConfig, d: Dimensions, at: Layout, work: Work, stage: int) -> dict[str, float]:
    """Operations of a rank of a stage for one micro-batch."""
    t, n = at.tensor, at.stages[stage]
    matrices = 2 * work.tokens * n * weights(d) / t
    attention = 2 * work.tokens * work.length * d.query * n / t
    head = 2 * work.scored * d.vocabulary * d.hidden / t if stage == len(at.stages) - 1 else 0.0
    again = 1 if cfg.megatron.recompute == "full" else 0
    passes = (1 if has_reference(cfg) else 0) + (1 if work.updates > 1 else 0)
    vision = 0.0
    if stage == 0 and d.tower:
        vision = tower(d.tower, work.encoded * d.tower.merge**2, work.length_of_picture * d.tower.merge**2)
        vision *= 1 if cfg.model.vision_frozen else 3
    frozen, lora = cfg.model.frozen, cfg.model.lora
    beside = 2 * work.tokens * n * adapters_of_layer(d, lora) / t if lora else 0.0
    known = passes - (has_reference(cfg) and cfg.reference_is_policy)
    trains_head = ("embeddings" if d.tied else "language") not in frozen
    return {
        # A frozen matrix has no gradient of its own to compute.
        "layers": matrices * ((2 if "language" in frozen else 3) + again + passes) + beside * (3 + again + known),
        "attention": attention * (3.5 + (cfg.megatron.recompute != "none") + passes),
        "output layer": head * (3 + trains_head + passes),  # its backward pass computes the logits again
        "vision": vision,
    }


def weights(d: Dimensions) -> int:
    """Of a layer's matrices, as far as a token passes through them."""
    attention = d.hidden * (d.query + 2 * d.keys) + d.query * d.hidden
    return attention + 3 * d.hidden * d.ffn * max(1, d.chosen) + d.hidden * d.experts


def tower(t: Tower, patches: int, picture: int) -> float:
    """A forward pass over patches of pictures of so many patches each; windows of Qwen2.5-VL's attention count as whole."""
    block = 4 * t.width**2 + (3 if t.kind == "qwen2_5_vl" else 2) * t.width * t.ffn
    wide = t.width * t.merge**2
    merger = t.mergers * (wide**2 + wide * t.out) / t.merge**2
    return patches * (2 * (t.patch_values * t.width + t.depth * block + merger) + 4 * t.depth * t.width * picture)


def traffic(cfg: RunConfig, d: Dimensions, at: Layout, layers: Layers, width: int) -> int:
    """Bytes a token that the rest of a layer reads and writes, forwards and backwards.

    cpu, in numbers: each norm 7 h forwards (square, mean, two products) and 18 h backwards; residual sums 3 h, twice each way;
    rotation 5 (q + k) each way; packs to batches and back 2 (q + 2 k) + 4 q and 2 (q + 2 k) + 5 q; SwiGLU 7 f and 13 f.
    Fused: norms 2 h and 4 h, residual sums and rotation the same, no batches, SwiGLU 3 f and 5 f.
    """
    h, q, k, f = d.hidden, d.query, d.keys, d.ffn * max(1, d.chosen)
    cpu, full = layers == "cpu", cfg.megatron.recompute == "full"
    forward = (14 if cpu else 4) * h + 6 * h, 5 * (q + k) + (2 * (q + 2 * k) + 4 * q if cpu else 0) + (7 if cpu else 3) * f
    backward = (36 if cpu else 8) * h + 6 * h, 5 * (q + k) + (2 * (q + 2 * k) + 5 * q if cpu else 0) + (13 if cpu else 5) * f
    stream, inner = (a * (2 if full else 1) + b for a, b in zip(forward, backward, strict=True))
    return width * (stream // at.tokens_over + inner // at.tensor)


def _stage(
    cfg: RunConfig, d: Dimensions, at: Layout, work: Work, rates: Rates, layers: Layers, stage: int
) -> tuple[dict[str, float], dict[str, float]]:
    """(seconds a micro-batch, seconds an update) by term."""
    width, n, last = BYTES[cfg.model.dtype], at.stages[stage], stage == len(at.stages) - 1
    trained = of_stage(d, at, stage, cfg.model.lora).trained(cfg.model.frozen)
    micro = {name: x / rates.flops for name, x in operations(cfg, d, at, work, stage).items()}
    moved = n * work.tokens * traffic(cfg, d, at, layers, width)
    micro["norms and sums"] = moved / rates.bandwidth
    micro["output layer, memory"] = _head_traffic(d, at, work, width) / rates.bandwidth if last else 0.0
    micro["gradient sums"] = trained.total * ((2 * width if layers == "cpu" else 0) + 8) / rates.bandwidth
    network = rates.network if cfg.placement.trainer.nodes > 1 else rates.link
    stream = width * work.tokens * d.hidden
    micro["tensor parallel"] = _collectives(cfg, at, n, last) * stream / rates.link
    if at.context > 1:  # keys and values of all ranks' tokens, and the sums of their gradients
        passes = 2 + (cfg.megatron.recompute != "none")
        micro["context parallel"] = passes * n * (at.context - 1) * width * work.tokens * 2 * d.keys / at.tensor / rates.link
    if len(at.stages) > 1:
        ends = (stage > 0) + (not last)
        micro["pipeline"] = 2 * ends * stream / at.tokens_over / network
    if at.spread > 1:  # a token's row to each of its experts and back, and their gradients
        rows = 4 * n * d.chosen * stream / at.tensor * at.expert_tensor * (at.spread - 1) / at.spread
        # Their ranks follow one another: such a group is in one node where it is no larger than that.
        near = at.spread * at.expert_tensor <= cfg.train.ranks // cfg.placement.trainer.nodes
        micro["expert parallel"] = rows / (rates.link if near else network)
    once = {"optimizer": UPDATE[layers] * shard(trained, at) / rates.bandwidth}
    sent = (trained.total - trained.experts) * (at.data - 1) / at.data
    sent += trained.experts * (at.expert_data - 1) / at.expert_data
    # Sharded: gradients are reduce-scattered, weights gathered. Else all-reduced.
    once["data parallel"] = sent * (4 + width if at.sharded_optimizer else 8) / network
    return micro, once


def _head_traffic(d: Dimensions, at: Layout, work: Work, width: int) -> float:
    """`megatron/logprob.py`, a scored token and vocabulary entry, in float32: forwards maximum, difference, exponential, sum,
    dot product (4 + 8 + 8 + 4 + 12), backwards two differences, exponential, product, quotient (8 each); bfloat16 is turned
    into it."""
    return work.scored * d.vocabulary / at.tensor * (36 + 40 + (12 if width == 2 else 0))


def _collectives(cfg: RunConfig, at: Layout, layers: int, last: bool) -> float:
    """Times a micro-batch's residual stream, of all its tokens, leaves a rank: two all-reduces a layer and pass; under sequence
    parallelism as many gathers and scatters, and two gathers more backwards, for the gradients of weights. Adapters gather the
    inputs of qkv and fc1 once more under sequence parallelism, and what they add behind the others always; both go backwards
    under sequence parallelism."""
    t = at.tensor
    if t == 1:
        return 0.0
    passes = 2 + (cfg.megatron.recompute == "full")
    lora = cfg.model.lora
    each = passes * 2 * 2 + (2 if at.sequence and lora is None else 0)
    if lora is not None:
        wide = sum(target in ("qkv_proj", "gate_up_proj") for target in lora.targets)
        each += (passes - 1) * ((len(lora.targets) - wide) + wide * at.sequence) + len(lora.targets) * at.sequence
    return (layers * each + (2 if last else 0)) * (t - 1) / t
