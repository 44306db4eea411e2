"""`python benchmarks/prefix_sharing.py [--out FILE]`: train steps with what a group begins with computed once, against whole
rollouts, on this machine: `benchmarks/gpu/prefixes.py` over a small model of Qwen2.5-VL's architecture, in float32."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Large enough that a step is arithmetic, small enough for a laptop: 13 million weights in the layers.
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
}


def main() -> None:
    from record import record

    from benchmarks.gpu import actor as actors
    from benchmarks.gpu import prefixes, shapes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "prefix_sharing.json")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens that a group begins with; all else is in proportion")
    args = parser.parse_args()
    actors.prepare()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        config = shapes.write(prefixes.SHAPE, Path(home), tiny=True, text=TEXT)
        actor = actors.make(Path(home), tokens=16384, dtype="float32", random_weights=True, rate=prefixes.RATE)
        for case in prefixes.cases(actor, config, args.prompt, args.prompt / 1000):
            assert case[-1]["apart"] <= prefixes.ALLOWED["float32"], case
            rows += case
            print(json.dumps(case[-1]), flush=True)
    record(args.out, rows)


if __name__ == "__main__":
    main()
