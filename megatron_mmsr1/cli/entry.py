"""`mmsr1 <verb>`: the one command. A room is imported only when its verb runs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import megatron_mmsr1.cli.bench as bench_verbs
import megatron_mmsr1.cli.checkpoints as checkpoint_verbs
import megatron_mmsr1.cli.cluster as cluster_verbs
import megatron_mmsr1.cli.data as data_verbs
import megatron_mmsr1.cli.estimate as estimate_verbs
import megatron_mmsr1.cli.plugins as plugin_verbs
import megatron_mmsr1.cli.report as report_verbs
import megatron_mmsr1.cli.search as search_verbs
import megatron_mmsr1.cli.serve as serve_verbs
import megatron_mmsr1.cli.slurm as slurm_verbs
import megatron_mmsr1.cli.worlds as world_verbs
from megatron_mmsr1.cli.parts import KEY_VALUE, Format, existing, group, verb, with_config
from megatron_mmsr1.doctor.checks import NAMES as CHECKS
from megatron_mmsr1.errors import AGAIN, Interrupted, RunError, UsageError, of_a_file

if TYPE_CHECKING:
    from megatron_mmsr1.config import RunConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0; 2 for wrong usage; 1 for a failure; 75 where the same command goes on; 130 for an
    interrupt."""
    args = parse(argv)
    try:
        args.run(args)
    except UsageError as e:
        return _say(e, 2)
    except Interrupted as e:
        return _say(e, AGAIN)
    except RunError as e:
        return _say(e, 1)
    except KeyboardInterrupt:
        return _say("interrupted; every process that this command started has been stopped", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the reader left, as `| head` does; nothing more to say)
        return 1
    except Exception as e:
        if os.environ.get("MMSR1_DEBUG") == "1":
            raise
        if said := of_a_file(e):
            return _say(*said)
        return _say(_report_defect(e, getattr(args, "output", None)), 1)
    return 0


def _help_of_group(args: argparse.Namespace) -> None:
    args.group.print_help()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of a verb. A key=value may also follow a flag, which argparse alone does not understand."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if not hasattr(args, "run"):  # a group alone: what can follow it
        args.run = _help_of_group
    if rest and (not hasattr(args, "override") or any(r.startswith("-") for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.override = [*args.override, *rest]
    return args


def _say(message: object, code: int) -> int:
    print(f"mmsr1: {message}", file=sys.stderr)
    return code


def _report_defect(error: Exception, output: str | None) -> str:
    """Keep the traceback in the run (or the temporary directory), and say in a paragraph where it is."""
    directory = Path(output) if output and Path(output).is_dir() else Path(tempfile.gettempdir())
    path = directory / f"mmsr1-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    path.write_text(f"$ {' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    return (
        f"this should not have happened: {type(error).__name__}: {error}\n"
        f"The traceback is in {path}; please attach it to a report of this defect. MMSR1_DEBUG=1 prints it here instead."
    )


# ------------------------------------------------------------------------------------------------------------------ verbs
def _load(args: argparse.Namespace) -> RunConfig:
    from megatron_mmsr1 import config

    cfg = config.load(args.config, args.override)
    args.output = cfg.output  # where a traceback would go
    return cfg


def _train(args: argparse.Namespace) -> None:
    cfg = _load(args)
    from megatron_mmsr1.run import launch

    launch.train(cfg)


def _sft(args: argparse.Namespace) -> None:
    cfg = _load(args)
    from megatron_mmsr1.run import launch

    launch.sft(cfg)


def _eval(args: argparse.Namespace) -> None:
    cfg = _load(args)
    from megatron_mmsr1.run import launch

    launch.evaluate(cfg, args.policies)


def _export(args: argparse.Namespace) -> None:
    from megatron_mmsr1.run.export import export

    source = existing(args.source)
    print(f"exporting {source} to {args.out} ...", file=sys.stderr, flush=True)
    export(source, Path(args.out), adapter=args.adapter)


def _doctor(args: argparse.Namespace) -> None:
    cfg = _load(args) if args.config else None
    from megatron_mmsr1.doctor.show import doctor

    doctor(cfg, args.only, as_json=args.json)


def _prompts_import(args: argparse.Namespace) -> None:
    from megatron_mmsr1.data.import_prompts import import_prompts

    first, after_image, after_text = (existing(p) for p in args.pickles)
    import_prompts(first, after_image, after_text, Path(args.out))
    print(f"wrote {args.out}: use it with protocol.prompts={args.out}")


# ----------------------------------------------------------------------------------------------------------------- parser
def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmsr1",
        description="Train large multimodal models to search on demand, and serve what was learned.",
        epilog="Start with: ./scripts/quickstart.sh   Every verb explains itself: mmsr1 VERB --help",
        formatter_class=Format,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    parser.set_defaults(group=parser)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    for name, run, what, example in (
        ("train", _train, "train by GRPO over real search", "mmsr1 train configs/atlas.yaml train.steps=20 output=runs/short"),
        ("sft", _sft, "cold-start a model from demonstrations", "mmsr1 sft configs/atlas-sft.yaml optimizer.lr=1e-3"),
    ):
        with_config(verb(verbs, name, run, what, example))

    p = with_config(
        verb(
            verbs,
            "eval",
            _eval,
            "evaluate a model, or the scripted policies, on held-out questions",
            "mmsr1 eval configs/atlas.yaml model.path=runs/atlas/model",
        )
    )
    p.add_argument(
        "--policies",
        action="store_true",
        help="evaluate the scripted policies (oracle, never, always, random) in the model's place: Atlas questions only; with "
        "the model's tokenizer and the search server, without an engine",
    )

    p = verb(verbs, "export", _export, "write a Hugging Face checkpoint of a run", "mmsr1 export runs/atlas runs/atlas-hf")
    p.add_argument("source", metavar="RUN_OR_CHECKPOINT", help="a run (its latest checkpoint) or one checkpoint directory")
    p.add_argument("out", metavar="OUT", help="directory to write")
    p.add_argument("--adapter", action="store_true", help="the adapters of model.lora alone, in peft's layout")

    checkpoint_verbs.add(verbs)
    data_verbs.add(verbs)
    serve_verbs.add(verbs)
    search_verbs.add(verbs)
    plugin_verbs.add(verbs)
    bench_verbs.add(verbs)
    cluster_verbs.add(verbs)
    estimate_verbs.add(verbs)
    slurm_verbs.add(verbs)

    world_verbs.add(verbs)
    report_verbs.add(verbs)

    p = verb(
        verbs,
        "doctor",
        _doctor,
        "look for what would go wrong here, or on the nodes of a job under srun",
        "mmsr1 doctor configs/atlas.yaml --only disk",
    )
    p.description = f"{p.description} Exit code 0 where nothing is an error (warnings are allowed), 1 otherwise."
    p.add_argument("config", metavar="CONFIG", nargs="?", help="a run as YAML, to be looked at too; default: the machine alone")
    p.add_argument("override", metavar="key=value", nargs="*", default=[], help=KEY_VALUE)
    p.add_argument("--json", action="store_true", help="as JSON, for a program or a bug report")
    p.add_argument(
        "--only",
        action="append",
        default=[],
        choices=CHECKS,
        help="this check alone; may be given several times. `engine` starts one if the config names none that runs",
    )

    prompts = group(verbs, "prompts", "import the prompts of a released checkpoint")
    p = verb(
        prompts,
        "import",
        _prompts_import,
        "read pickled prompt strings, without executing them",
        "mmsr1 prompts import round_1.pkl after_image.pkl after_text.pkl --out prompts.yaml",
    )
    p.add_argument(
        "pickles",
        metavar="PICKLE",
        nargs=3,
        help="the prompts: first, after an image search, after a text search",
    )
    p.add_argument("--out", required=True, help="YAML file to write (protocol.prompts names it)")
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from megatron_mmsr1 import __version__

        print(f"megatron-mmsr1 {__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
