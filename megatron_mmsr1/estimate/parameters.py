"""How many parameters a rank holds, of each part that `model.freeze` may name: exact, by pipeline stage and tensor rank.

Tensor parallelism splits the matrices of attention (by heads), feed-forward layers and experts (by their inner width), and the
vocabulary. Norms, the router and the vision tower stand whole on every tensor rank. The embedding is on the first stage, the
last norm and the output layer on the last; tied embeddings are one weight, of which the last stage of several has a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_mmsr1.cluster.fits import stages
from megatron_mmsr1.cluster.stages import divided
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.lora import LoraConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.estimate.dimensions import Dimensions, Tower


@dataclass(frozen=True)
class Layout:
    """How a model is split: the layers of each pipeline stage, over how many ranks tensors and tokens are, and how many sum
    their gradients and share an optimizer: those of data and context parallelism together. Experts are split by ways of their
    own: over `spread` ranks whole, each over `expert_tensor`, with `expert_data` ranks of the same."""

    tensor: int
    stages: tuple[int, ...]
    data: int
    sequence: bool
    sharded_optimizer: bool
    context: int = 1
    spread: int = 1
    expert_tensor: int = 1
    expert_data: int = 1

    @property
    def tokens_over(self) -> int:
        """Over how many ranks the tokens between matrices are split."""
        return self.tensor if self.sequence else 1


@dataclass(frozen=True)
class Parameters:
    """Of one rank; the output layer is the embedding where they are tied, else language. `adapters`: of `model.lora`."""

    language: int = 0
    experts: int = 0
    embeddings: int = 0
    tower: int = 0
    merger: int = 0
    adapters: int = 0

    @property
    def total(self) -> int:
        return self.language + self.experts + self.embeddings + self.tower + self.merger + self.adapters

    def trained(self, frozen: frozenset[str]) -> Parameters:
        """Those that take a gradient; a mixture's experts are of its language model."""
        names = {*frozen, "experts"} if "language" in frozen else frozen
        return replace(self, **dict.fromkeys(names, 0))


def layout(cfg: RunConfig, d: Dimensions) -> Layout:
    """UsageError for a pipeline that the layers do not fill."""
    m = cfg.megatron
    data = cfg.data_parallel * m.context_parallel
    same = cfg.train.ranks // (m.expert_tensor * m.expert_parallel * m.pipeline_parallel)
    split = m.context_parallel, m.expert_parallel, m.expert_tensor, same
    return Layout(m.tensor_parallel, _stages(cfg, d), data, m.sequence_parallel, m.distributed_optimizer, *split)


def _stages(cfg: RunConfig, d: Dimensions) -> tuple[int, ...]:
    """As the trainer divides them (`cluster/stages.py`); a stage holds every `pipeline_parallel`-th chunk."""
    m = cfg.megatron
    for said in stages(m, d.layers, d.first):
        raise UsageError(said)
    before, behind = d.beside
    chunks = divided(m, d.layers, first=d.first, beside=(before * (not cfg.model.vision_frozen), behind))
    return tuple(sum(chunks[i :: m.pipeline_parallel]) for i in range(m.pipeline_parallel))


def of_stage(d: Dimensions, at: Layout, stage: int, lora: LoraConfig | None = None) -> Parameters:
    """Of each tensor rank of a pipeline stage."""
    first, last = stage == 0, stage == len(at.stages) - 1
    words = d.vocabulary // at.tensor * d.hidden
    language = at.stages[stage] * layer(d, at.tensor) + (d.hidden if last else 0)
    embeddings = words if first else 0
    if last and d.tied:
        embeddings = words
    elif last:
        language += words
    experts = at.stages[stage] * 3 * d.hidden * d.ffn * d.experts // (at.spread * at.expert_tensor)
    tower, merger = vision(d.tower) if first and d.tower else (0, 0)
    adapters = at.stages[stage] * adapters_of_layer(d, lora) // at.tensor if lora else 0
    return Parameters(language, experts, embeddings, tower, merger, adapters)


def whole(d: Dimensions) -> Parameters:
    """Of a model that is not split."""
    return of_stage(d, Layout(1, (d.layers,), 1, sequence=False, sharded_optimizer=False), 0)


def layer(d: Dimensions, tensor: int = 1) -> int:
    """A decoder layer without experts: two norms, attention, feed-forward layer or router."""
    split = d.query + 2 * d.keys
    attention = d.hidden * split + d.query * d.hidden + (split if d.qkv_bias else 0)
    forward = 0 if d.experts else 3 * d.hidden * d.ffn
    whole = 2 * d.hidden + (2 * d.head if d.qk_norm else 0) + d.hidden * d.experts
    return whole + (attention + forward) // tensor


def adapters_of_layer(d: Dimensions, lora: LoraConfig) -> int:
    """Of a layer that is not split: A [rank, inputs] and B [outputs, rank] of each target; all of them are split."""
    sides = {
        "qkv_proj": d.hidden + d.query + 2 * d.keys,
        "o_proj": d.query + d.hidden,
        "gate_up_proj": d.hidden + 2 * d.ffn,
        "down_proj": d.ffn + d.hidden,
    }
    return lora.rank * sum(sides[t] for t in lora.targets)


def vision(t: Tower) -> tuple[int, int]:
    """(tower, mergers), as transformers builds them: norms of Qwen2.5-VL have no bias, patches only Qwen3-VL's; its
    feed-forward layers are gated in Qwen2.5-VL alone."""
    e, wide = t.width, t.width * t.merge**2
    norm = e if t.kind == "qwen2_5_vl" else 2 * e
    attention = 4 * e * e + 4 * e
    forward = 3 * e * t.ffn + 2 * t.ffn + e if t.kind == "qwen2_5_vl" else 2 * e * t.ffn + t.ffn + e
    patches = t.patch_values * e + (e if t.kind == "qwen3_vl" else 0) + t.positions * e
    merger = wide * wide + wide + wide * t.out + t.out
    # The mergers of inner layers norm what they have joined, the others before it.
    return patches + t.depth * (2 * norm + attention + forward), t.mergers * merger + norm + (t.mergers - 1) * 2 * wide
