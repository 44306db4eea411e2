"""What the jobs of a run are: which scripts with which configs, from one config, a sweep, and the verbs that follow."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_mmsr1 import config
from megatron_mmsr1.cluster.nodes import Node
from megatron_mmsr1.cluster.placement import gpus_wanted, nodes_wanted, plan
from megatron_mmsr1.cluster.slurm.script import Job
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.reading import override
from megatron_mmsr1.errors import UsageError

THEN = ("eval", "export")


@dataclass(frozen=True, slots=True)
class Sweep:
    """One key's values, each a run of its own. Raises UsageError for text that is no `key=a,b`."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Sweep:
        key, eq, listed = text.partition("=")
        values = tuple(v.strip() for v in re.split(r",(?![^\[{]*[\]}])", listed))
        if not eq or not key or not all(values) or len(set(values)) < 2:
            raise UsageError(f"--sweep {text}: write it as key=a,b,c with at least two values that differ")
        return cls(key, values)

    def configs(self, cfg: RunConfig) -> list[RunConfig]:
        return [changed(cfg, f"{self.key}={v}", f"output={cfg.output}/sweep/{_name(f'{self.key}={v}')}") for v in self.values]


def changed(cfg: RunConfig, *overrides: str) -> RunConfig:
    """The config with these on top. UsageError as `config.load` gives it."""
    raw = yaml.safe_load(config.dump(cfg))
    for item in overrides:
        override(raw, item)
    return config.parse(raw, " ".join(overrides))


def verb_of(cfg: RunConfig) -> str:
    return "sft" if cfg.algorithm.supervised else "train"


def of_run(verb: str, configs: Sequence[RunConfig], directory: Path, workdir: Path) -> tuple[Job, list[str]]:
    """The job of `mmsr1 VERB` for one config, or an array's for several, and their configs as text; the job names them as
    files that are yet to be written. UsageError where the placement does not fit the nodes that are asked for."""
    configs = [evaluation(c) if verb == "eval" else c for c in configs]
    cfg = configs[0]
    if verb in ("train", "sft") and any(c.algorithm.supervised != (verb == "sft") for c in configs):
        raise UsageError(f"mmsr1 {verb} does not run algorithm.name={cfg.algorithm.name}")
    nodes, gpus = nodes_wanted(cfg), _gpus(cfg)
    for c in configs:
        if gpus or c.slurm.gpus_per_node == 0:
            plan(c, [Node(str(i), "", gpus) for i in range(nodes)])
        if (nodes_wanted(c), _gpus(c)) != (nodes, gpus):
            raise UsageError("--sweep: the runs of one array must want the same nodes and GPUs; submit them one by one")
    several = len(configs) > 1
    files = [directory / f"{verb}{f'-{i}' if several else ''}.yaml" for i in range(len(configs))]
    job = Job(
        verb=verb,
        name=f"{cfg.name}-{verb}",
        arguments=tuple((str(f),) for f in files),
        nodes=nodes,
        gpus=gpus,
        directory=directory,
        workdir=workdir,
        command=_command(cfg),
    )
    return job, [config.dump(c) for c in configs]


def of_export(configs: Sequence[RunConfig], directory: Path, workdir: Path) -> Job:
    """Each run's model as a Hugging Face checkpoint beside it. UsageError where something is there."""
    outs = [Path(f"{c.output}-export") for c in configs]
    for out in outs:
        if (workdir / out).exists():
            raise UsageError(f"{out} exists, where the export would go: move it, or leave export out of --then")
    cfg = configs[0]
    arguments = tuple((str(c.output), str(o)) for c, o in zip(configs, outs, strict=True))
    return Job("export", f"{cfg.name}-export", arguments, 1, 0, directory, workdir, _command(cfg))


def missing_inputs(verb: str, cfg: RunConfig) -> list[str]:
    """`key=path` of what the run reads and this machine does not have. No reason to refuse the job: a disk that only the nodes
    have may hold it."""
    found = [("model.path", f"{cfg.output}/model" if verb == "eval" else cfg.model.path)]
    if verb == "sft":
        found += [] if cfg.sft.drawn else [("sft.source", cfg.sft.source)]
    else:
        found += [("data.train", p) for p in cfg.data.train] if verb == "train" else []
        found += [("data.heldout", p) for p in cfg.data.heldout]
        found += [("search.corpus", cfg.search.corpus)] if cfg.search.corpus else []
    return [f"{key}={path}" for key, path in found if not Path(path).exists()]


def evaluation(cfg: RunConfig) -> RunConfig:
    """Of the model that the run leaves: engines on one node, and no ranks."""
    p = cfg.placement
    here = -(-p.engines.count // (p.engines.nodes or p.trainer.nodes))
    return changed(
        cfg,
        f"model.path={cfg.output}/model",
        f"placement={{trainer: {{gpus_per_node: 0}}, engines: {{count: {here}, gpus_each: {_yaml(p.engines.gpus_each)}}}}}",
        "train.ranks=1",
        "megatron.tensor_parallel=1",
        "megatron.pipeline_parallel=1",
        "megatron.sequence_parallel=false",
    )


def _gpus(cfg: RunConfig) -> int:
    if cfg.slurm.gres:
        found = re.search(r"gpu(?::[\w.-]*[a-zA-Z_][\w.-]*)?:(\d+)", cfg.slurm.gres)
        return int(found[1]) if found else 0
    return gpus_wanted(cfg) if cfg.slurm.gpus_per_node is None else cfg.slurm.gpus_per_node


def _command(cfg: RunConfig) -> tuple[str, ...]:
    if cfg.slurm.command:
        return tuple(cfg.slurm.command)
    return (sys.executable, "-m", "megatron_mmsr1.cli") if cfg.slurm.container.runtime == "none" else ("mmsr1",)


def _name(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", text)


def _yaml(value: int | None) -> str:
    return "null" if value is None else str(value)
