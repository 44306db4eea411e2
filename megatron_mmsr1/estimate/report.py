"""`mmsr1 estimate`: memory and time of a run on a GPU, as text or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_mmsr1.cluster.fits import check_lora
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.estimate import dimensions, engine, memory
from megatron_mmsr1.estimate import rollout as rollouts
from megatron_mmsr1.estimate import step as steps
from megatron_mmsr1.estimate.activations import Layers
from megatron_mmsr1.estimate.batch import Batch, Work, work
from megatron_mmsr1.estimate.devices import EFFICIENCY, NETWORK, Device
from megatron_mmsr1.estimate.dimensions import Dimensions
from megatron_mmsr1.estimate.parameters import Layout, layout
from megatron_mmsr1.models import REGISTRY, Family, ModelFiles, get, of_checkpoint


@dataclass(frozen=True)
class Asked:
    """What a person adds to the config. `rollout_s`: seconds of a step's rollouts, None: not known."""

    device: Device
    batch: Batch = field(default_factory=Batch)
    efficiency: float = EFFICIENCY
    network: float = NETWORK
    rollout_s: float | None = None
    layers: Layers = "transformer-engine"
    config_json: Path | None = None


@dataclass(frozen=True)
class Estimate:
    cfg: RunConfig
    asked: Asked
    d: Dimensions
    at: Layout
    work: Work
    ranks: list[memory.Rank]
    seconds: dict[str, float] | None
    engine: engine.Share
    rollout: dict[str, float] | None  # seconds by term; None where the run has no engines or the device no rates

    @property
    def largest(self) -> memory.Rank:
        return max(self.ranks, key=lambda r: r.peak.total)

    @property
    def rollout_s(self) -> float | None:
        """As measured, or as told."""
        told = None if self.rollout is None else sum(self.rollout.values())
        return told if self.asked.rollout_s is None else self.asked.rollout_s

    @property
    def gpus(self) -> int:
        """Of ranks and engines."""
        p, ranks = self.cfg.placement, self.cfg.train.ranks
        engines = 0 if self.cfg.algorithm.supervised else p.engines.count * self.engine.gpus
        return max(ranks, engines) if p.colocated else ranks + engines

    @property
    def pace(self) -> float | None:
        """Prompts a second and GPU, rollouts and training one after the other."""
        if self.seconds is None or self.rollout_s is None:
            return None
        return self.cfg.data.prompts_per_step / (sum(self.seconds.values()) + self.rollout_s) / self.gpus

    @property
    def fits(self) -> bool | None:
        """None where the device's memory is not known."""
        return None if self.asked.device.memory is None else self.largest.peak.total <= self.asked.device.memory


def files_of(cfg: RunConfig, config_json: Path | None) -> ModelFiles:
    """The model that the config names, or, while it is not here, what its config.json says."""
    if config_json is None:
        return of_checkpoint(cfg.model.path, cfg.model.family)
    try:
        raw = json.loads(config_json.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(f"--config-json {config_json} cannot be read as JSON: {e}") from e
    return ModelFiles(config_json, raw, _family(raw, cfg, config_json))


def _family(raw: dict[str, Any], cfg: RunConfig, where: Path) -> Family:
    names = [cfg.model.family] if cfg.model.family else REGISTRY.names()
    fitting = [f for f in map(get, names) if set(raw.get("architectures") or ["none"]) <= set(f.architectures)]
    if not fitting:
        raise UsageError(f"--config-json {where} is of {raw.get('architectures')}, which no model family answers to")
    return fitting[0]


def estimate(cfg: RunConfig, asked: Asked) -> Estimate:
    """UsageError for a model or layout whose sizes cannot be told, and for adapters that the model does not take."""
    files = files_of(cfg, asked.config_json)
    check_lora(cfg.model.lora, files.config)
    return of_model(cfg, asked, dimensions.of_files(files))


def of_model(cfg: RunConfig, asked: Asked, d: Dimensions) -> Estimate:
    """As `estimate`, of a model whose sizes are known already."""
    at = layout(cfg, d)
    w = work(cfg, asked.batch)
    x = asked.device
    seconds = rolled = None
    own = engine.share(cfg, d, x.memory)
    if x.flops and x.bandwidth and x.link:
        rates = steps.Rates(x.flops * asked.efficiency, x.bandwidth, x.link, asked.network)
        seconds = steps.step(cfg, d, at, w, rates, asked.layers)
        rolled = None if cfg.algorithm.supervised else rollouts.rollout(cfg, d, own, asked.batch, rates)
    ranks = memory.ranks(cfg, d, at, w, asked.layers)
    return Estimate(cfg, asked, d, at, w, ranks, seconds, own, rolled)


def as_json(e: Estimate) -> str:
    d = {
        "layout": asdict(e.at),
        "micro_batches": asdict(e.work),
        "device": asdict(e.asked.device),
        "batch": asdict(e.asked.batch),
        "layers": e.asked.layers,
        "ranks": [
            {
                "stage": r.stage,
                "layers": r.layers,
                "parameters": r.parameters,
                "trained": r.trained,
                "phases": {p.name: {"bytes": p.total, "terms": p.terms} for p in r.phases},
            }
            for r in e.ranks
        ],
        "largest": {"stage": e.largest.stage, "phase": e.largest.peak.name, "bytes": e.largest.peak.total},
        "fits": e.fits,
        "engine": asdict(e.engine),
        "seconds": e.seconds,
        "rollout_seconds": e.asked.rollout_s,
        "rollout": e.rollout,
        "prompts_per_second_and_gpu": e.pace,
        "measured_on_gpu": False,
    }
    return json.dumps(d, indent=1)


def as_text(e: Estimate) -> str:
    return "\n".join([*_memory(e), "", *_engine(e), "", *_time(e), "", *_said(e)])


def split_of(cfg: RunConfig) -> str:
    """How the ranks share the model and its tokens, in a line."""
    m = cfg.megatron
    split = f"TP{m.tensor_parallel} x PP{m.pipeline_parallel} x DP{cfg.data_parallel}"
    return split + f" x CP{m.context_parallel}" * (m.context_parallel > 1)


def _memory(e: Estimate) -> list[str]:
    m, w = e.cfg.megatron, e.work
    split = split_of(e.cfg) + f" x EP{m.expert_parallel}" * (m.expert_parallel > 1)
    batches = f"{w.updates} updates of {w.count} micro-batches of {w.tokens} tokens a rank"
    out = [f"{e.cfg.name}: {split}, {e.asked.layers} layers, recompute {m.recompute}; {batches}"]
    for r in e.ranks:
        out += ["", f"stage {r.stage}: {r.layers} layers, {r.parameters:,} parameters a rank, {r.trained:,} of them trained"]
        for p in r.phases:
            terms = ", ".join(f"{name} {size(n)}" for name, n in p.terms.items() if n)
            out.append(f"  {p.name:<7}{size(p.total):>10}  {terms}")
    x, peak = e.asked.device, e.largest.peak
    fit = "" if x.memory is None else f", which {'fits' if e.fits else 'does not fit'} {x.name} ({size(x.memory)})"
    return [*out, "", f"largest: a rank of stage {e.largest.stage} in phase {peak.name}, {size(peak.total)}{fit}"]


def _engine(e: Estimate) -> list[str]:
    s = e.engine
    line = f"engine: {s.gpus} GPU{'s' if s.gpus > 1 else ''} each, {size(s.weights)} of weights and "
    line += f"{s.kv_bytes_a_token:,} bytes of keys and values a token on each GPU"
    if s.kv_tokens is not None:
        line += f"; {s.kv_tokens:,} tokens in the {s.static:.0%} of it that mem_fraction_static gives to both"
    where = "on the trainer's GPUs, where only one of both is at a time" if e.cfg.placement.colocated else "on GPUs of its own"
    return [f"{line}; {where}"]


def _time(e: Estimate) -> list[str]:
    if e.seconds is None:
        return ["step: no rates of this device: give --tflops, --memory-gb-s and --link-gb-s"]
    x, total = e.asked.device, sum(e.seconds.values())
    a = e.asked
    rates = f"{x.flops or 0:.4g} FLOP/s (assumed), {x.bandwidth or 0:.4g} B/s of memory, {x.link or 0:.4g} B/s a link"
    out = [f"step, training: {total:.1f} s at {a.efficiency:.0%} of {rates}, {a.network:.4g} B/s between nodes"]
    out += [f"  {name:<22}{s:>9.2f} s" for name, s in e.seconds.items() if s]
    if e.rollout is None:
        return out
    told, at_once = sum(e.rollout.values()), rollouts.running(e.engine, a.batch, rollouts.conversations(e.cfg))
    out += ["", f"step, rollout: {told:.1f} s, of {at_once} conversations at a time an engine"]
    out += [f"  {name:<22}{s:>9.2f} s" for name, s in e.rollout.items() if s]
    spent = told if a.rollout_s is None else a.rollout_s
    given = "" if a.rollout_s is None else f" with {spent:.1f} s of rollouts, as given,"
    whole = f"step:{given} {spent + total:.1f} s for {e.cfg.data.prompts_per_step} prompts of {e.cfg.data.group_size} rollouts"
    return [*out, "", f"{whole} on {e.gpus} GPUs: {e.pace:.3g} prompts a second and GPU"]


def _said(e: Estimate) -> list[str]:
    b = e.asked.batch
    return [
        f"Assumed of a mean trajectory: {b.prompt} tokens of prompt, {b.sampled} sampled, {b.observed} observed; {b.picture} "
        "of them are of pictures.",
        "Not counted: what CUDA, NCCL and the allocator keep for themselves, prefixes that a micro-batch holds once, weights "
        "on their way to the engines; of rollouts, searches and that some are longer than the mean.",
        "On a GPU none of this has been measured (docs/estimate.md).",
    ]


def size(n: int) -> str:
    """In GiB, or in MiB below half of one."""
    return f"{n / 2**30:.1f} GiB" if n >= 2**29 else f"{n / 2**20:.1f} MiB"
