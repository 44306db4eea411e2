"""What `mmsr1 plan` prints: node by node, GPU by GPU, which process, with the memory that is certain."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_mmsr1.cluster.fits import expert_parameters
from megatron_mmsr1.cluster.memory import engine_bytes, parameters, trainer_bytes
from megatron_mmsr1.cluster.placement import ENGINES, JUDGE, SEARCH, SUMMARISER, TRAINER, Place, Plan
from megatron_mmsr1.config import RunConfig

NAMES = {TRAINER: "rank", ENGINES: "engine", SEARCH: "search server", SUMMARISER: "summariser", JUDGE: "judge"}


def picture(cfg: RunConfig, plan: Plan) -> str:
    """The plan as text, a line a process."""
    path = Path(cfg.model.path)
    n = parameters(path) if path.is_dir() else None
    experts = expert_parameters(json.loads((path / "config.json").read_text())) if (path / "config.json").is_file() else 0
    lines = [_head(cfg, n)]
    for number, node in enumerate(plan.nodes):
        here = [p for p in plan.places if p.node == number]
        gpus = f"{node.gpus} GPUs" if node.gpus else "no GPU"
        lines.append(f"node {number}  {node.name} ({node.address}), {gpus}")
        lines += [f"  {_devices(p):<10} {_what(cfg, p):<40} {_memory(cfg, p, n, experts)}".rstrip() for p in here]
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


def _head(cfg: RunConfig, n: int | None) -> str:
    m = cfg.megatron
    layout = f"TP{m.tensor_parallel} x PP{m.pipeline_parallel} x DP{cfg.data_parallel}"
    layout += f" x CP{m.context_parallel}" * (m.context_parallel > 1)
    if (m.expert_parallel, m.expert_tensor) != (1, m.tensor_parallel):
        layout += f" (experts EP{m.expert_parallel} x TP{m.expert_tensor})"
    model = f"{cfg.model.path} ({n / 1e9:.2f} G parameters)" if n else f"{cfg.model.path} (not here: memory unknown)"
    return f"{cfg.name}: {cfg.train.ranks} ranks as {layout}, {model}"


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


def _memory(cfg: RunConfig, p: Place, n: int | None, experts: int) -> str:
    if n is None or p.role not in (TRAINER, ENGINES):
        return ""
    each = trainer_bytes(cfg, n, experts) if p.role == TRAINER else engine_bytes(cfg, n, len(p.gpus))
    what = "weights, gradients, optimizer" if p.role == TRAINER else "weights"
    size = f"{each / 2**30:.1f} GiB" if each >= 2**29 else f"{each / 2**20:.1f} MiB"
    return f"{size} {what}{' a GPU' if len(p.gpus) > 1 else ''}"


def _devices(p: Place) -> str:
    return _numbers([str(g) for g in p.gpus]) if p.gpus else "-"


def _numbers(found: list[str]) -> str:
    return f"GPU {found[0]}" if len(found) == 1 else f"GPU {found[0]}-{found[-1]}" if len(found) > 1 else ""
