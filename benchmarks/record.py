"""What a benchmark leaves in results/: its rows, the day, and the machine as `mmsr1 doctor` knows it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from megatron_mmsr1.procs import doctor


def record(out: Path, rows: list[dict[str, Any]]) -> None:
    facts = doctor.collect()
    machine = {**facts["machine"], "python": facts["python"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "date": time.strftime("%Y-%m-%d"), "rows": rows}, indent=1) + "\n")
    print(f"wrote {out}")
