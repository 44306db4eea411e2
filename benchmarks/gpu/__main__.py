"""`python -m benchmarks.gpu JSON`: what `mmsr1 bench gpu` starts, with its options. Exit codes: 0; 1 if a part failed; 2."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import check
from megatron_mmsr1.errors import UsageError


def main(options: dict[str, Any]) -> int:
    out = Path(options.pop("out"))
    try:
        results = check(**options, out=out)
    except UsageError as e:
        print(f"mmsr1: {e}", file=sys.stderr)
        return 2
    for r in results:
        if r.status == "failed":
            print(f"\n{r.part} failed:\n" + "\n".join(r.reasons), file=sys.stderr)
    print(f"results are in {out}")
    return int(any(r.status == "failed" for r in results))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    sys.exit(main(json.loads(sys.argv[1])))
