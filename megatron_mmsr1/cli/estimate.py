"""`mmsr1 estimate`: what a run needs of each GPU, and how long a step takes, before anything is started."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_mmsr1.cli.parts import Verbs, verb, with_config
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.estimate.batch import Batch
from megatron_mmsr1.estimate.devices import DEVICES, EFFICIENCY, NETWORK


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    p = with_config(
        verb(
            verbs,
            "estimate",
            _estimate,
            "tell the memory of each GPU, phase by phase, and a step's time by a roofline (docs/estimate.md)",
            "mmsr1 estimate configs/qwen2.5-vl-7b-fvqa.yaml --config-json configs/shapes/Qwen2.5-VL-7B-Instruct.json",
        )
    )
    p.add_argument("--config-json", type=Path, metavar="FILE", help="the model's config.json, where model.path is not here")
    p.add_argument("--gpu", choices=tuple(DEVICES), default="H100", help="default: %(default)s")
    p.add_argument("--memory-gib", type=float, help="of the GPU, in place of its data sheet's")
    p.add_argument("--tflops", type=float, help="dense operations a second, in place of the data sheet's")
    p.add_argument("--memory-gb-s", type=float, help="bandwidth of its memory, in place of the data sheet's")
    p.add_argument("--link-gb-s", type=float, help="to another GPU of its node, one way, in place of the data sheet's")
    p.add_argument(
        "--network-gb-s",
        type=float,
        default=NETWORK / 1e9,
        help="between nodes, a GPU and one way (default: %(default)s, assumed)",
    )
    p.add_argument(
        "--efficiency", type=float, default=EFFICIENCY, help="share of --tflops that is reached (default: %(default)s, assumed)"
    )
    p.add_argument("--rollout-s", type=float, help="seconds of a step's rollouts, as measured, in place of what is told")
    p.add_argument(
        "--layers",
        choices=("transformer-engine", "cpu"),
        help="whose layers compute; default: transformer-engine's, with --gpu cpu megatron-core's local ones",
    )
    mean = Batch()
    for name, value, what in (
        ("prompt", mean.prompt, "of the first prompt, its pictures included"),
        ("sampled", mean.sampled, "that are sampled"),
        ("observed", mean.observed, "that tools return"),
        ("picture", mean.picture, "of all these that stand for pictures"),
    ):
        p.add_argument(
            f"--{name}-tokens", type=int, default=value, help=f"tokens a trajectory {what} (default: %(default)s, assumed)"
        )
    p.add_argument("--json", action="store_true", help="as JSON, for a program")


def _estimate(args: argparse.Namespace) -> None:
    import dataclasses

    from megatron_mmsr1 import config
    from megatron_mmsr1.estimate import report

    for name in ("memory_gib", "tflops", "memory_gb_s", "link_gb_s", "network_gb_s", "efficiency", "prompt_tokens"):
        given = getattr(args, name)
        if given is not None and given <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {given} must be above 0")
    given = {
        "memory": args.memory_gib and int(args.memory_gib * 2**30),
        "flops": args.tflops and args.tflops * 1e12,
        "bandwidth": args.memory_gb_s and args.memory_gb_s * 1e9,
        "link": args.link_gb_s and args.link_gb_s * 1e9,
    }
    asked = report.Asked(
        dataclasses.replace(DEVICES[args.gpu], **{k: v for k, v in given.items() if v}),
        Batch(args.prompt_tokens, args.sampled_tokens, args.observed_tokens, args.picture_tokens),
        args.efficiency,
        args.network_gb_s * 1e9,
        args.rollout_s,
        args.layers or ("cpu" if args.gpu == "cpu" else "transformer-engine"),
        args.config_json,
    )
    found = report.estimate(config.load(args.config, args.override), asked)
    print(report.as_json(found) if args.json else report.as_text(found))
