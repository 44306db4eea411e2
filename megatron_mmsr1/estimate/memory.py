"""What a rank holds in each phase of a step, term by term."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.estimate import activations as acts
from megatron_mmsr1.estimate.activations import Kept, Layers
from megatron_mmsr1.estimate.batch import Work
from megatron_mmsr1.estimate.dimensions import Dimensions
from megatron_mmsr1.estimate.parameters import Layout, Parameters, of_stage

BYTES = {"float32": 4, "bfloat16": 2}
CACHE = 2 << 30  # of a frozen tower's features (`megatron/vision.py`)


@dataclass(frozen=True)
class Phase:
    """Bytes by term at the worst moment of a phase."""

    name: str
    terms: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.terms.values())


@dataclass(frozen=True)
class Rank:
    """Each tensor and data-parallel rank of a pipeline stage."""

    stage: int
    layers: int
    parameters: int
    trained: int
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda p: p.total)


def ranks(cfg: RunConfig, d: Dimensions, at: Layout, work: Work, layers: Layers) -> list[Rank]:
    """A rank of each pipeline stage."""
    return [_Stage(cfg, d, at, work, layers, i).rank() for i in range(len(at.stages))]


def largest_held(cfg: RunConfig, d: Dimensions, at: Layout) -> int:
    """Bytes that the fullest rank holds all the time."""
    return max(sum(held(cfg, d, at, i).values()) for i in range(len(at.stages)))


def held(cfg: RunConfig, d: Dimensions, at: Layout, stage: int) -> dict[str, int]:
    """What a rank holds all the time: weights; gradients in float32 (megatron-core's buffer); Adam's two moments, but for those
    in the host's memory, and, under bfloat16, master weights, over data-parallel ranks where the optimizer is sharded. What is
    frozen has weights alone. A reference model is another copy of the weights, with adapters only where it takes over the
    policy's."""
    p, width = of_stage(d, at, stage, cfg.model.lora), BYTES[cfg.model.dtype]
    trained = p.trained(cfg.model.frozen)
    moments = 2 * BYTES[cfg.optimizer.moments_dtype] * (1 - cfg.megatron.offload.optimizer)
    state = moments + (4 if width == 2 else 0)
    terms = {"weights": p.total * width, "gradients": 4 * trained.total, "optimizer": round(state * shard(trained, at))}
    if has_reference(cfg) and not cfg.reference_is_policy:
        terms["reference"] = (p.total - (0 if cfg.algorithm.reference_interval else p.adapters)) * width
    return terms


def shard(trained: Parameters, at: Layout) -> int:
    """How many of a rank's trained parameters its optimizer updates."""
    if not at.sharded_optimizer:
        return trained.total
    return (trained.total - trained.experts) // at.data + trained.experts // at.expert_data


def has_reference(cfg: RunConfig) -> bool:
    a = cfg.algorithm
    return not a.supervised and bool(a.kl_coef or a.distill_coef)


class _Stage:
    """A stage's moments. Micro-batches in flight: of P stages with m micro-batches, stage i holds min(m, P - i) under 1F1B
    (arXiv 2104.04473, section 2.2)."""

    def __init__(self, cfg: RunConfig, d: Dimensions, at: Layout, work: Work, layers: Layers, stage: int) -> None:
        self.cfg, self.d, self.at, self.work, self.stage, self.kind = cfg, d, at, work, stage, layers
        self.width = BYTES[cfg.model.dtype]
        self.k = Kept(d, at, self.width, layers, cfg.model.lora)
        self.first, self.last = stage == 0, stage == len(at.stages) - 1
        self.in_flight = min(work.count, len(at.stages) - stage)
        p = of_stage(d, at, stage, cfg.model.lora)
        self.parameters, self.trained = p.total, p.trained(cfg.model.frozen)
        self.words = d.vocabulary // at.tensor * d.hidden
        # Whether the output layer's weight has a gradient.
        self.trains_head = ("embeddings" if d.tied else "language") not in cfg.model.frozen

    def rank(self) -> Rank:
        always = held(self.cfg, self.d, self.at, self.stage) | self._always()
        phases = [Phase("train", always | self._train()), Phase("update", always | self._update())]
        if has_reference(self.cfg) or self.work.updates > 1:
            phases.insert(0, Phase("score", always | self._score()))
        return Rank(self.stage, self.at.stages[self.stage], self.parameters, self.trained.total, tuple(phases))

    def _always(self) -> dict[str, int]:
        """Sequence parallelism gathers a micro-batch's hidden states into a buffer that stays (megatron-core's global one), but
        for frozen matrices."""
        buffer = self.at.sequence and self.cfg.model.lora is None
        gathered = self.width * self.work.tokens * self.d.hidden if buffer else 0
        frozen = self.cfg.model.vision_frozen and self.first and self.d.tower is not None
        features = self.width * self._features() * self.work.count if frozen else 0
        return {"buffers": gathered, "features": min(CACHE, features)}

    def _features(self) -> int:
        """Numbers in a micro-batch's picture features."""
        return self.work.encoded * self.d.hidden * (self.d.tower.mergers if self.d.tower else 0)

    def _patches(self) -> int:
        return self.work.encoded * self.d.tower.merge**2 if self.d.tower and self.first else 0

    def _train(self) -> dict[str, int]:
        """The worst of: the output layer's two passes, the first backward pass of a layer, the tower's forward pass, and the
        embedding's backward pass."""
        tokens, recompute = self.work.tokens, self.cfg.megatron.recompute
        layers = tokens * self.at.stages[self.stage] * self.k.layer(recompute)
        if self.cfg.megatron.offload.activations:  # the inputs of layers are on the host
            layers = 0
        vision, transient = self._vision()
        whole = layers + self._once()
        earlier = (self.in_flight - 1) * whole
        end = (tokens * self.k.last_norm() + self.work.scored * (self.width * self.d.hidden + 28)) if self.last else 0
        tied = self.width * self.words if self.d.tied and self.first and self.last and self.trains_head else 0
        again = tokens * self.k.layer() if recompute == "full" else 0
        kept = {"activations": earlier + whole, "vision": self.in_flight * vision}
        moments = [kept | {"activations": earlier + whole + again, "backward": tokens * self.k.backward() + tied}]
        if self.last:
            chunk = self.cfg.megatron.logprob_chunk
            scored, trained = self.work.scored, self.trains_head
            head = max(acts.head_forward(self.k, scored, chunk), acts.head_backward(self.k, scored, chunk, trained=trained))
            moments.append(kept | {"activations": earlier + whole + end, "logits": head})
        if self.first:
            moments.append({"activations": earlier, "vision": (self.in_flight - 1) * vision + max(vision, transient)})
            if "embeddings" not in self.cfg.model.frozen:
                lookup = self.width * self.words + tied
                moments.append({"activations": earlier, "vision": self.in_flight * vision, "backward": lookup})
        return max(moments, key=lambda m: sum(m.values()))

    def _once(self) -> int:
        """Kept of a micro-batch outside of layers: rotary angles; on the first stage the pack's embeddings, of which sequence
        parallelism takes a view; in bfloat16 on a CPU, where norms keep float32 copies, a later stage's input."""
        tokens, full = self.work.tokens, self.cfg.megatron.recompute == "full"
        stream = tokens * self.width * self.d.hidden
        received = tokens * self.k.stream if not self.first and not full and self.width == 2 and self.kind == "cpu" else 0
        view = stream - tokens * self.k.stream if self.first else 0
        return tokens * self.k.rotary() + received + view

    def _vision(self) -> tuple[int, int]:
        """(kept until the backward pass, the forward pass's transient) of a micro-batch's pictures."""
        t, patches = self.d.tower, self._patches()
        if t is None or not patches:
            return 0, 0
        transient = acts.tower_forward(t, patches, self.width)
        return (0 if self.cfg.model.vision_frozen else acts.tower_kept(t, patches, self.width)), transient

    def _score(self) -> dict[str, int]:
        """Nothing is kept: a layer's forward pass, or the output layer's."""
        tokens = self.work.tokens
        layer = tokens * (self.k.layer() + 2 * self.k.stream)
        head = acts.head_forward(self.k, self.work.scored, self.cfg.megatron.logprob_chunk) if self.last else 0
        vision = self._vision()[1]
        worst = max(layer, head, vision)
        name = "activations" if worst == layer else "logits" if worst == head else "vision"
        return {name: worst}

    def _update(self) -> dict[str, int]:
        """`megatron/adam.py` holds the root of the second moment beside the state; transformer-engine's Adam nothing."""
        return {"update": 4 * shard(self.trained, self.at) if self.kind == "cpu" else 0}
