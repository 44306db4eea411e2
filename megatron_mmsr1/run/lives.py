"""The lives of a run that died: written down, and counted, so that one that comes to nothing is not tried for ever."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from megatron_mmsr1.errors import Interrupted, RunError
from megatron_mmsr1.run.directory import checkpointed_step

FILE = "lives.jsonl"
FRUITLESS = 2  # lives in a row without a step


class Lives:
    """`restarts`: how often ranks may be started again within this process."""

    def __init__(self, out: Path, restarts: int) -> None:
        self.out, self.left = out, restarts
        self._began = checkpointed_step(out)

    def died(self, error: Interrupted) -> None:
        """Write a life's end down. Raises RunError, not to be tried again, once `FRUITLESS` lives in a row made no step."""
        at = checkpointed_step(self.out)
        row = {
            "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": os.environ.get("SLURM_RESTART_COUNT", ""),
            "from": self._began,
            "to": at,
            "how": str(error).splitlines()[0],
        }
        with (self.out / FILE).open("a") as f:
            f.write(json.dumps(row) + "\n")
        self._began = at
        rows = [json.loads(line) for line in (self.out / FILE).read_text().splitlines()]
        last = rows[-FRUITLESS:]
        if len(last) == FRUITLESS and all(r["from"] == r["to"] == at for r in last):
            raise RunError(f"{FRUITLESS} lives of this run in a row ended at step {at} without a step: not again. {error}")

    def again(self) -> bool:
        """Whether the ranks may be started again here; counts it."""
        self.left -= 1
        return self.left >= 0
