"""Parallel layouts of the trainer that a model, its ranks and a GPU allow, the fastest first: for `mmsr1 plan --layouts`.

Each is estimated as `mmsr1 estimate` does it; none is measured. To choose what to try first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_mmsr1.cluster.fits import experts_of, problems
from megatron_mmsr1.config import MegatronConfig, RunConfig, checks
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.estimate.dimensions import of_files
from megatron_mmsr1.estimate.report import Asked, Estimate, files_of, of_model, size

USABLE = 0.9  # of a GPU's memory: what CUDA, NCCL and fragmentation take is not counted
LOST = {"bubble": "waiting in the pipeline"}  # terms by the names that a person reads, where those differ
COMPUTED = ("layers", "attention", "output layer", "vision")


@dataclass(frozen=True)
class Proposal:
    """What is told of a run under a layout, which differs from the config's by `changed`."""

    estimate: Estimate
    changed: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Of a step's training."""
        return sum((self.estimate.seconds or {}).values())

    @property
    def settings(self) -> list[str]:
        """As overrides of the config: tensor and pipeline parallelism, and what else differs from it."""
        return [f"megatron.{name}={json.dumps(value)}" for name, value in self.changed.items()]

    @property
    def why(self) -> str:
        """One sentence: its memory, its time, and what takes the most of it beside arithmetic."""
        largest = self.estimate.largest.peak.total
        terms = self.estimate.seconds or {}
        lost = sorted(((s, n) for n, s in terms.items() if n not in COMPUTED and s >= 0.01 * self.seconds), reverse=True)
        told = ", ".join(f"{s / self.seconds:.0%} of it {LOST.get(n, n)}" for s, n in lost[:3])
        return f"{size(largest)} in the fullest rank; {self.seconds:.1f} s a step{f', {told}' if told else ''}."


def proposals(cfg: RunConfig, asked: Asked) -> list[Proposal]:
    """The layouts of `train.ranks` that pass every check of the settings and of the model and fit the GPU, the fastest first;
    of equally fast ones that of the least memory. Context parallelism, batch and recompute stay as they are set, as does
    everything else; `virtual_pipeline`, `pipeline_split` and `expert_tensor_parallel` have their defaults.

    UsageError for a model whose sizes cannot be told, a GPU whose rates are not known, and where no layout fits."""
    files, device = files_of(cfg, asked.config_json), asked.device
    d, found = of_files(files), list[Proposal]()
    was = cfg.megatron.model_dump()
    for m in _candidates(cfg, experts_of(files.config)):
        new = cfg.model_copy(update={"megatron": m})
        if checks.problems(new) or any(problems(m, files.config, first=d.first)):
            continue
        e = of_model(new, asked, d)
        if e.seconds is None:
            raise UsageError(f"--gpu {device.name}: its rates are not known, so that layouts cannot be compared")
        if device.memory is None or e.largest.peak.total <= USABLE * device.memory:
            always = ("tensor_parallel", "pipeline_parallel")
            found.append(Proposal(e, {k: v for k, v in m.model_dump().items() if k in always or v != was[k]}))
    if not found:
        raise UsageError(
            f"no layout of train.ranks={cfg.train.ranks} fits {cfg.model.path} into {USABLE:.0%} of {device.name}'s memory: "
            "raise train.ranks, lower megatron.tokens_per_microbatch, or set megatron.recompute=full"
        )
    return sorted(found, key=lambda p: (round(p.seconds, 2), p.estimate.largest.peak.total))


def as_text(cfg: RunConfig, found: list[Proposal], most: int = 10) -> str:
    """The best of them, two lines each."""
    device, ranks = found[0].estimate.asked.device.name, cfg.train.ranks
    lines = [f"{cfg.name}: {len(found)} layouts of {ranks} ranks fit {device}; estimated, not measured (docs/estimate.md)"]
    for i, p in enumerate(found[:most], 1):
        lines += [f"{i:>2}  {' '.join(p.settings)}  (data parallel {p.estimate.cfg.data_parallel})", f"    {p.why}"]
    return "\n".join(lines)


def _candidates(cfg: RunConfig, experts: int) -> Iterator[MegatronConfig]:
    """Tensor parallelism within a node, with sequence parallelism; any number of stages; experts over any ranks of a stage."""
    ranks, node = cfg.train.ranks, max(1, cfg.train.ranks // max(1, cfg.placement.trainer.nodes))
    fresh = {"virtual_pipeline": 1, "pipeline_split": None, "expert_tensor_parallel": None}
    for tp in _divisors(node):
        for pp in _divisors(ranks // tp):
            for ep in _divisors(experts) if experts else [1]:
                layout = {"tensor_parallel": tp, "pipeline_parallel": pp, "sequence_parallel": tp > 1, "expert_parallel": ep}
                yield cfg.megatron.model_copy(update=layout | fresh)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
