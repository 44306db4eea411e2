"""The process that runs parts one after another. A part that raised has it replaced: the state of a GPU after an error is not
known."""

from __future__ import annotations

import importlib
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import Device, Job


def serve(pipe: Connection, device: Device, tiny: bool) -> None:
    """Say what this machine is, then run each part whose name and deadline come through the pipe, until it closes."""
    os.setsid()  # the processes that a part starts end with this one (runner.py ends the group)
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    facts = _facts()
    if device == "cuda" and not facts["cuda"]["devices"]:
        pipe.send(
            ("refused", f"torch {facts['packages']['torch']} sees no CUDA device; --device cpu --tiny runs it on the CPU")
        )
        return
    pipe.send(("facts", facts))
    while True:
        try:
            name, deadline = pipe.recv()
        except EOFError:
            return
        if not _run(name, Job(device, tiny, deadline, lambda kind, value: pipe.send((kind, value)))):
            return


def _run(name: str, job: Job) -> bool:
    """Whether the next part may run in this process."""
    try:
        importlib.import_module(f"benchmarks.gpu.{name}").run(job)
    except Exception as e:
        job.fault(f"{type(e).__name__}: {e}\n{_where(e)}")
        job.tell("end", False)
        return False
    job.tell("end", True)
    return True


def _where(e: Exception) -> str:
    """The last frames, without the machine's paths: a result may be committed."""
    frames = traceback.extract_tb(e.__traceback__)[-6:]
    return "\n".join(f"  {Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in frames)


def _facts() -> dict[str, Any]:
    from benchmarks.record import provenance
    from megatron_mmsr1.procs.facts import collect

    found = collect(ports={})
    return {**provenance(), "packages": found["packages"], "cuda": found["cuda"]}
