"""`python -m megatron_mmsr1.rollout.engines.sglang.entry ARGUMENTS.json`: SGLang's server from a JSON object of its arguments.

The arguments go through SGLang's own command line parser, so that its checks apply; a name that it does not know ends the
process with code 2 and a suggestion. On a CPU the server is adapted first (`sglang_cpu`). Its scheduler and detokenizer are
processes of their own, which, where they are spawned, import this module again under another name: so the adaptation happens at
import, and only where this file is a process's main module.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from megatron_mmsr1.sync import published

if __name__ in ("__main__", "__mp_main__"):
    from megatron_mmsr1.procs import bound_store

    bound_store.install()
if __name__ in ("__main__", "__mp_main__") and os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
    from megatron_mmsr1.rollout.engines.sglang.cpu_shims import use_sgl_kernel

    use_sgl_kernel()
    from megatron_mmsr1.rollout.engines.sglang.cpu import install

    install()


def command_line(arguments: dict[str, Any], parser: argparse.ArgumentParser) -> list[str]:
    """`arguments` as SGLang's command line: true is a flag, false its absence, a mapping JSON, a list several words.

    Raises ValueError that names an unknown argument, with the nearest known one, or a value that a flag cannot take.
    """
    known = {a.dest: a for a in parser._actions if a.option_strings}
    argv: list[str] = []
    for name, value in arguments.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"engine.sglang.{name}: SGLang has no such argument" + (f"; did you mean {near[0]}?" if near else "")
            )
        action = known[name]
        flag = action.option_strings[-1]
        if value is None:
            continue
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise ValueError(f"engine.sglang.{name}: must be true or false, not {value!r}")
            if isinstance(action, argparse.BooleanOptionalAction):
                argv.append(flag if value == (not flag.startswith("--no-")) else action.option_strings[0])
            elif value:
                argv.append(flag)
        elif isinstance(value, dict):
            argv += [flag, json.dumps(value)]
        elif isinstance(value, list):
            argv += [flag, *map(str, value)]
        else:
            argv += [flag, str(value)]
    return argv


def with_published(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments without our own `follow`; what it points to, if anything, is the model to serve and its version."""
    follow = arguments.pop("follow", None)
    found = published.read(Path(follow)) if follow else None
    if found is None:
        return arguments
    # The tokenizer and the processor are the checkpoint's own: weights are published with all that stood beside them.
    return arguments | {"model_path": str(found[0]), "weight_version": str(found[1])}


def main() -> None:
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs, prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    parser = argparse.ArgumentParser(prog="sglang")
    ServerArgs.add_cli_args(parser)
    try:
        argv = command_line(with_published(json.loads(Path(sys.argv[1]).read_text())), parser)
    except ValueError as e:
        print(e, file=sys.stderr, flush=True)
        sys.exit(2)
    try:
        checked = prepare_server_args(argv)
    except Exception:  # of whatever kind: nothing but SGLang's checks of its arguments has run
        traceback.print_exc()
        sys.exit(2)
    try:
        run_server(checked)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
