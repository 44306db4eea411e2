"""What `mmsr1 doctor` prints: a table node by node, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.doctor.check import Level
from megatron_mmsr1.doctor.examine import Found, examine, worst
from megatron_mmsr1.errors import RunError


def doctor(cfg: RunConfig | None, only: Sequence[str], *, as_json: bool) -> None:
    """Look, and print what the first task gathered. RunError, for exit code 1, where anything is an error."""
    rows = examine(cfg, only)
    if rows is None:
        return
    if as_json:
        sys.stdout.write(json.dumps({"level": worst(rows), "findings": [r.plain() for r in rows]}, indent=1) + "\n")
    else:
        sys.stdout.write(table(rows))
    sys.stdout.flush()
    errors = [r for r in rows if r.finding.level is Level.ERROR]
    if errors:
        where = dict.fromkeys(f"{r.check}{f' on {r.node}' if r.node else ' between nodes'}" for r in errors)
        raise RunError(f"the doctor found {len(errors)} error{'s' * (len(errors) > 1)}: {', '.join(where)}")


def table(rows: Sequence[Found]) -> str:
    """A line a finding: level (where it is not ok), check, what, value; below it the advice."""
    wide = max((len(r.finding.what) for r in rows), default=0)
    out: list[str] = []
    for node, found in groupby(rows, key=lambda r: r.node):
        out.append(node or "between nodes")
        for r in found:
            f = r.finding
            mark = "" if f.level is Level.OK else str(f.level)
            head = f"{mark:<8} {r.check:<10} {f.what:<{wide}}  "
            lines = [line for line in (f.value, f.advice) if line] or [""]
            out += [(head if i == 0 else " " * len(head)) + line for i, line in enumerate(lines)]
    counts = {level: sum(r.finding.level is level for r in rows) for level in Level}
    out.append(f"{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings, {counts[Level.OK]} ok")
    return "\n".join(line.rstrip() for line in out) + "\n"
