"""Runs the parts under their deadlines and writes a result a part, as each ends: `mmsr1 bench gpu`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import worker
from benchmarks.gpu.job import Device
from benchmarks.gpu.parts import PARTS, PartSpec
from benchmarks.record import commit
from megatron_mmsr1.errors import UsageError

START_SHARE = 0.2  # of the budget, for a worker to import torch and to say what the machine is


@dataclass
class Result:
    """What becomes benchmarks/results/gpu/PART.json."""

    part: str
    status: str = "ok"  # or failed, or skipped
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)  # why it failed, or was skipped
    skipped: list[str] = field(default_factory=list)  # what was left out of a part that ran
    rows: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        self.status = "failed"
        self.reasons.append(reason)


class Check:
    """One run of the whole check. `close` ends every process that it started."""

    def __init__(self, device: Device, *, tiny: bool, out: Path, budget_s: float, commit: str | None) -> None:
        self.device, self.tiny, self.out = device, tiny, out
        self.budget_s, self.ends = budget_s, time.monotonic() + budget_s
        self.commit = commit
        self.facts: dict[str, Any] = {}
        self._process: Any = None
        self._pipe: Any = None

    def run(self, spec: PartSpec) -> Result:
        """Run one part, or skip it by name. Raises UsageError if the device is not there."""
        result = Result(spec.name)
        started = time.monotonic()
        missing = spec.missing()
        if missing:
            result.status = "skipped"
            result.reasons.append(f"not installed: {', '.join(missing)} (scripts/gpu_check.sh --wheels DIR)")
        elif self.ends - started < spec.least_s:
            result.status = "skipped"
            result.reasons.append(f"it wants at least {spec.least_s:.0f} s, {max(self.ends - started, 0):.0f} s are left")
        else:
            self._measure(spec, result)
        result.seconds = round(time.monotonic() - started, 1)
        self._write(result)
        return result

    def close(self) -> None:
        if self._process is not None:
            if self._process.is_alive():
                try:
                    os.killpg(self._process.pid, signal.SIGKILL)
                except ProcessLookupError:  # it has no group of its own yet
                    self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None

    def _measure(self, spec: PartSpec, result: Result) -> None:
        if self._process is None and not self._start(result):
            return
        deadline = min(time.monotonic() + spec.share * self.budget_s, self.ends)
        self._pipe.send((spec.name, deadline))
        while True:
            kind, value = self._receive(deadline, result)
            if kind == "row":
                result.rows.append(value)
            elif kind == "skipped":
                result.skipped.append(value)
            elif kind == "fault":
                result.fail(value)
            else:
                if not value:  # a worker that failed, or that is gone
                    self.close()
                return

    def _start(self, result: Result) -> bool:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(theirs, self.device, self.tiny))
        self._process.start()
        theirs.close()
        kind, value = self._receive(min(time.monotonic() + START_SHARE * self.budget_s, self.ends), result)
        if kind == "refused":
            self.close()
            raise UsageError(value)
        if kind != "facts":
            self.close()
            return False
        self.facts = value
        return True

    def _receive(self, deadline: float, result: Result) -> tuple[str, Any]:
        """The next message; ("end", None), and the reason in the result, if none comes."""
        try:
            if self._pipe.poll(max(deadline - time.monotonic(), 0)):
                return self._pipe.recv()
            result.fail("ended at its deadline; what is in `rows` was measured before")
        except EOFError:
            self._process.join()
            result.fail(f"its process died with exit code {self._process.exitcode}")
        return "end", None

    def _write(self, result: Result) -> None:
        facts = self.facts or {"commit": commit(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
        if self.commit:
            facts = facts | {"commit": self.commit}
        said = {**vars(result), "device": self.device, "tiny": self.tiny, **facts}
        rows = said.pop("rows")
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / f"{result.part}.json"
        file.write_text(json.dumps({**said, "rows": rows}, indent=1) + "\n")
        what = "; ".join(r.splitlines()[0] for r in result.reasons)
        print(f"{result.part:10} {result.status:8} {result.seconds:6.1f} s  {len(rows):3} rows  {what}", flush=True)
        for left_out in result.skipped:
            print(f"           left out: {left_out}", flush=True)


def check(
    device: Device, *, tiny: bool, out: Path, budget_s: float, only: list[str], commit: str | None = None
) -> list[Result]:
    """Run the parts (`only` those, if any are named), a result each. Raises UsageError for an unknown part and for a machine
    without the device."""
    names = [p.name for p in PARTS]
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise UsageError(f"no part {', '.join(unknown)}: they are {', '.join(names)}")
    run = Check(device, tiny=tiny, out=out, budget_s=budget_s, commit=commit)
    try:
        return [run.run(p) for p in PARTS if not only or p.name in only]
    finally:
        run.close()
