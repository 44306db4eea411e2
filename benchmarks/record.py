"""What a benchmark leaves in results/: its rows, the commit and the day that they are of, and the machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from megatron_mmsr1.procs.facts import collect
from megatron_mmsr1.run.starts import git

ROOT = Path(__file__).parent.parent
# What numbers depend on: a commit of results or of pages measures nothing anew.
MEASURED = ("megatron_mmsr1", "serving", "demo", "configs", "scripts", "benchmarks/*.py")


def provenance() -> dict[str, Any]:
    """{"commit", "date", "machine"}: what was measured, when (UTC) and where."""
    facts = collect()
    machine = {**facts["machine"], "python": facts["python"]}
    return {"commit": commit(), "date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine}


def commit(root: Path = ROOT) -> str:
    """The last commit that changed what is measured, with "+changes" where the working tree differs from it; "unknown" outside
    a checkout."""
    last = git(root, "log", "-1", "--format=%H", "--", *MEASURED)
    return last + ("+changes" if git(root, "status", "--porcelain", "--", *MEASURED) else "") if last else "unknown"


def record(out: Path, rows: list[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n")
    print(f"wrote {out}")
