"""The verbs of a cluster: `mmsr1 plan` shows what would run where, `mmsr1 node` runs a node's share of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_mmsr1.cli.parts import Verbs, verb, with_config
from megatron_mmsr1.estimate.devices import GPUS


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    p = with_config(
        verb(verbs, "plan", _plan, "show which process would run on which node and GPU", "mmsr1 plan configs/atlas.yaml")
    )
    p.add_argument("--nodes", type=int, help="plan for so many nodes instead of those that are here")
    p.add_argument("--gpus", type=int, default=8, help="GPUs of each of --nodes")
    p.add_argument("--steps", action="store_true", help="one line a Slurm step, for the job's script")
    p.add_argument("--layouts", action="store_true", help="the trainer's parallel layouts that fit, best first, and why")
    p.add_argument("--gpu-type", choices=GPUS, default="H100", help="of --layouts (default: %(default)s)")
    p.add_argument("--config-json", type=Path, metavar="FILE", help="of --layouts: the model's, where model.path is not here")

    p = verb(verbs, "node", _node, "run a node's share of a job, as its first node tells it", "mmsr1 node --step trainer")
    p.add_argument("--step", required=True, help="which of the job's steps this is: trainer or engines")


def _plan(args: argparse.Namespace) -> None:
    from megatron_mmsr1 import config
    from megatron_mmsr1.cluster import picture
    from megatron_mmsr1.cluster.nodes import Node, of_job
    from megatron_mmsr1.cluster.placement import plan

    cfg = config.load(args.config, args.override)
    if args.layouts:
        from megatron_mmsr1.estimate import layouts
        from megatron_mmsr1.estimate.devices import DEVICES
        from megatron_mmsr1.estimate.report import Asked

        asked = Asked(DEVICES[args.gpu_type], config_json=args.config_json)
        print(layouts.as_text(cfg, layouts.proposals(cfg, asked)))
        return
    nodes = of_job() if args.nodes is None else [Node(f"node{i}", f"node{i}", args.gpus) for i in range(args.nodes)]
    found = plan(cfg, nodes)
    print(picture.steps(found) if args.steps else picture.picture(cfg, found))


def _node(args: argparse.Namespace) -> None:
    from megatron_mmsr1.cluster import agent

    agent.run(args.step)
