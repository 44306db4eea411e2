"""What `mmsr1 plan` prints: node by node, GPU by GPU, which process, with the memory that is certain."""

from __future__ import annotations

from pathlib import Path

from megatron_mmsr1.cluster.placement import ENGINES, JUDGE, SEARCH, SUMMARISER, TRAINER, Place, Plan
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.estimate import dimensions, engine
from megatron_mmsr1.estimate.dimensions import Dimensions
from megatron_mmsr1.estimate.memory import held
from megatron_mmsr1.estimate.parameters import layout, whole
from megatron_mmsr1.estimate.report import size, split_of
from megatron_mmsr1.models import of_checkpoint

NAMES = {TRAINER: "rank", ENGINES: "engine", SEARCH: "search server", SUMMARISER: "summariser", JUDGE: "judge"}


def picture(cfg: RunConfig, plan: Plan) -> str:
    """The plan as text, a line a process."""
    d = _dimensions(cfg)
    lines = [_head(cfg, d)]
    for number, node in enumerate(plan.nodes):
        here = [p for p in plan.places if p.node == number]
        gpus = f"{node.gpus} GPUs" if node.gpus else "no GPU"
        lines.append(f"node {number}  {node.name} ({node.address}), {gpus}")
        lines += [f"  {_devices(p):<10} {_what(cfg, p):<40} {_memory(cfg, p, d)}".rstrip() for p in here]
        used = {g for p in here for g in p.gpus}
        idle = [str(g) for g in range(node.gpus) if g not in used]
        if idle:
            lines.append(f"  {_numbers(idle):<10} idle")
        if not here:
            lines.append("  nothing")
    return "\n".join(lines)


def steps(plan: Plan) -> str:
    """`STEP NODE,NODE`, a line a Slurm step: for the job's script."""
    return "\n".join(f"{name} {','.join(n.name for n in nodes)}" for name, nodes in plan.steps)


def _dimensions(cfg: RunConfig) -> Dimensions | None:
    """None for a model that is not here, or whose sizes are not known."""
    if not (Path(cfg.model.path) / "config.json").is_file():
        return None
    try:
        return dimensions.of_files(of_checkpoint(cfg.model.path, cfg.model.family))
    except UsageError:
        return None


def _head(cfg: RunConfig, d: Dimensions | None) -> str:
    m = cfg.megatron
    split = split_of(cfg)
    if (m.expert_parallel, m.expert_tensor) != (1, m.tensor_parallel):
        split += f" (experts EP{m.expert_parallel} x TP{m.expert_tensor})"
    there = Path(cfg.model.path).is_dir()
    unknown = f"{'its sizes are not known' if there else 'not here'}: memory unknown"
    model = f"{cfg.model.path} ({f'{whole(d).total / 1e9:.2f} G parameters' if d else unknown})"
    return f"{cfg.name}: {cfg.train.ranks} ranks as {split}, {model}"


def _what(cfg: RunConfig, p: Place) -> str:
    if p.role == TRAINER:
        m = cfg.megatron
        rest, tp = divmod(p.index, m.tensor_parallel)
        rest, cp = divmod(rest, m.context_parallel)
        pp, dp = divmod(rest, cfg.data_parallel)
        leads = ", leads a replica" if tp == cp == pp == 0 and not cfg.algorithm.supervised else ""
        share = f", cp {cp}" * (m.context_parallel > 1)
        return f"rank {p.index} (tp {tp}, pp {pp}, dp {dp}{share}{leads})"
    port = getattr(cfg.engine, "sglang", {}).get("port")
    at = f", port {int(port) + p.index}" if p.role == ENGINES and port else ", a free port of 20000 to 31999"
    return f"{NAMES[p.role]}{f' {p.index}' if p.role == ENGINES else ''}{at}"


def _memory(cfg: RunConfig, p: Place, d: Dimensions | None) -> str:
    """What is certain before a batch; `mmsr1 estimate` tells the rest."""
    if d is None or p.role not in (TRAINER, ENGINES):
        return ""
    if p.role == ENGINES:
        return f"{size(engine.weights(cfg, d, len(p.gpus)))} weights{' a GPU' if len(p.gpus) > 1 else ''}"
    at = layout(cfg, d)
    terms = held(cfg, d, at, p.index // (cfg.train.ranks // len(at.stages)))
    return f"{size(sum(terms.values()))} {', '.join(terms)}"


def _devices(p: Place) -> str:
    return _numbers([str(g) for g in p.gpus]) if p.gpus else "-"


def _numbers(found: list[str]) -> str:
    return f"GPU {found[0]}" if len(found) == 1 else f"GPU {found[0]}-{found[-1]}" if len(found) > 1 else ""
