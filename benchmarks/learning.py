"""Does the loop learn when to search, and when to crop? `python benchmarks/learning.py [--seeds 0 1 2] [--ablations]
[--algorithms] [--maths] [--table]`

For each seed: a fresh Atlas world of that seed, GRPO from the shipped cold start (configs/atlas.yaml), held-out questions
before and after, the oracle beside them. One JSON a run in benchmarks/results/, which names the commit, the day and the
machine, then the table over all that stands there. A run takes about as long as the quickstart; what is there is run again
only if the code has changed since. Ablations: no search penalty; a cold start whose demonstrations chose their tools at
random to the end ("untilted"); and both cold starts where 60 % or 84 % of the questions are search-free and the learning
rate is three times as high ("mostly-free-fast", "rarely-required-fast"). Algorithms: the other recipes with their own
settings; and GRPO with an engine that is not the trainer's model, which computes in bfloat16 or has the weights of the step
before (one_step_old.py), each without and with a correction. Maths: instead, problems in pictures without tools
(configs/maths.yaml), in a table of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import commit, provenance

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
UNTILTED = "model.path=megatron_mmsr1/atlas/checkpoints/untilted"
MOSTLY_FREE = "mix={known: 0.3, picture: 0.3, image: 0.14, text: 0.13, both: 0.13, crop: 0}"
RARELY_REQUIRED = "mix={known: 0.42, picture: 0.42, image: 0.06, text: 0.05, both: 0.05, crop: 0}"
# A variant: (knobs of the world, settings of the run).
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "grpo": ([], []),
    "no-search-penalty": ([], ["reward.search_penalty=0.0"]),
    "untilted": ([], [UNTILTED]),
    "mostly-free-fast": ([MOSTLY_FREE], ["optimizer.lr=3e-4"]),
    "mostly-free-fast-untilted": ([MOSTLY_FREE], [UNTILTED, "optimizer.lr=3e-4"]),
    "rarely-required-fast-untilted": ([RARELY_REQUIRED], [UNTILTED, "optimizer.lr=3e-4"]),
    "rarely-required-fast": ([RARELY_REQUIRED], ["optimizer.lr=3e-4"]),
}
ABLATIONS = [name for name in VARIANTS if name != "grpo"]
BF16 = "engine.sglang={dtype: bfloat16}"
STALE = "train.sync={name: benchmarks/one_step_old.py:TRANSPORT}"
NONE, TIS = "algorithm.correction=none", "algorithm.correction=tis"
ALGORITHMS: dict[str, list[str]] = {
    **{name: [f"algorithm.name={name}"] for name in ("dr_grpo", "rloo", "reinforce_pp_baseline", "gspo", "cispo", "sapo")},
    "dapo": [
        "algorithm.name=dapo",
        TIS,
        "shaping.refill.rounds=3",
        "shaping.overlong={buffer: 24, penalty: 1.0}",  # of the 72 tokens that three turns can sample
    ],
    "bf16-engine": [BF16, NONE],
    "bf16-engine-tis": [BF16, TIS],
    "one-step-old": [STALE, NONE],
    "one-step-old-tis": [STALE, TIS],
}
VARIANTS |= {name: ([], own) for name, own in ALGORITHMS.items()}
MATHS = "maths"
VARIANTS[MATHS] = ([], [])
FREE, REQUIRED, CROP = ("known", "picture"), ("image", "text", "both"), ("crop",)


def run(variant: str, seed: int, extra: list[str]) -> Path:
    """Build, train, evaluate the policies; the result file. A failing command ends the benchmark with its exit code."""
    name = f"learning-{variant}-seed{seed}"
    target = RESULTS / f"{name}.json"
    if target.exists() and measured_by(target) == commit():
        return target
    knobs, own = VARIANTS[variant]
    base = variant.removesuffix("-untilted") if knobs else "even"
    code = commit()[:12].replace("+", "-")  # worlds and runs of other code are not this one's
    kind = MATHS if variant == MATHS else "atlas"
    world, out = ROOT / "build" / f"{kind}-{base}-seed{seed}-{code}", ROOT / "runs" / f"{name}-{code}"
    if not (world / "heldout.parquet").exists():
        _mmsr1(kind, "build", str(world), f"seed={seed}", *knobs)
    settings = [
        f"seed={seed}",
        f"output={out}",
        f"data.train=[{world}/train.parquet]",
        f"data.heldout=[{world}/heldout.parquet]",
        *([] if kind == MATHS else [f"search.corpus={world}"]),
        *own,
        *extra,
    ]
    started = time.monotonic()
    _mmsr1("train", f"configs/{kind}.yaml", *settings)
    seconds = time.monotonic() - started
    if kind != MATHS and not (out / "eval" / "policies.json").exists():
        _mmsr1("eval", "configs/atlas.yaml", *settings, "--policies")
    evals = {n: json.loads((out / "eval" / f"{n}.json").read_text()) for n in ("before", "after")}
    policies = [] if kind == MATHS else json.loads((out / "eval" / "policies.json").read_text())["results"]
    result = {
        "benchmark": "learning",
        **provenance(),
        "variant": variant,
        "seed": seed,
        "settings": [s for s in settings if "/" not in s],
        "train_seconds": round(seconds, 1),
        "before": evals["before"]["rows"],
        "after": evals["after"]["rows"],
        "policies": {p["name"]: p["rows"] for p in policies},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    return target


def measured_by(result: Path) -> str:
    """The commit that a result names; "" for one that names none."""
    return json.loads(result.read_text()).get("commit", "")


def tools_share(rows: list[dict[str, Any]], kinds: tuple[str, ...]) -> float:
    """Share of the responses to questions of these kinds that call any tool."""
    chosen = [r for r in rows if r["kind"] in kinds]
    return sum(r["search_share"] * r["n"] for r in chosen) / sum(r["n"] for r in chosen)


def crop_share(rows: list[dict[str, Any]], kinds: tuple[str, ...]) -> float | None:
    """Share of the responses to questions of these kinds that crop; None in a world without crop questions."""
    if not any(r["kind"] in CROP for r in rows):
        return None
    chosen = [r for r in rows if r["kind"] in kinds]
    return sum(r["tools"].get("crop", 0.0) * r["n"] for r in chosen) / sum(r["n"] for r in chosen)


def crop_target(needed: list[float | None], elsewhere: list[float | None]) -> bool:
    """As for search: undecided before, then on at least 0.90 of the questions that need it and at most 0.10 of the others."""
    if needed[0] is None or needed[1] is None or elsewhere[1] is None:
        return True
    return 0.25 <= needed[0] <= 0.75 and needed[1] >= 0.90 and elsewhere[1] <= 0.10


def table(paths: list[Path]) -> str:
    """One line a run: accuracy, reward and the use of tools, before and after, the oracle's reward, and the target.

    `free`: questions that need no tool, `required`: those that need a search; the share of responses that call a tool. Then the
    share that crops, of those to crop questions and of those to all others.
    """
    out = [
        "| run | accuracy before | after | reward before | after | oracle | tools on free before | after | "
        "on required before | after | crops where needed before | after | elsewhere before | after | minutes | "
        "target | commit | day |",
        "| --- |" + " ---: |" * 14 + " --- |" * 3,
    ]
    for r in results(paths, maths=False):
        before, after = r["before"], r["after"]
        b, a, oracle = before[-1], after[-1], r["policies"]["oracle"][-1]
        free = [tools_share(rows, FREE) for rows in (before, after)]
        required = [tools_share(rows, REQUIRED) for rows in (before, after)]
        needed = [crop_share(rows, CROP) for rows in (before, after)]
        elsewhere = [crop_share(rows, (*FREE, *REQUIRED)) for rows in (before, after)]
        met = (
            a["accuracy"] - b["accuracy"] >= 0.25
            and free[1] <= 0.10
            and required[1] >= 0.90
            and 0.25 <= free[0] <= 0.75
            and 0.25 <= required[0] <= 0.75
            and oracle["reward"] - a["reward"] <= 0.1
            and crop_target(needed, elsewhere)
        )
        cells = [
            b["accuracy"],
            a["accuracy"],
            b["reward"],
            a["reward"],
            oracle["reward"],
            *free,
            *required,
            *needed,
            *elsewhere,
        ]
        out.append(table_row(r, cells, met))
    return "\n".join(out)


def maths_table(paths: list[Path]) -> str:
    """One line a run of maths: accuracy, share of well-formed answers and reward (0 to 2), before and after, and the target."""
    out = [
        "| run | accuracy before | after | format before | after | reward before | after | minutes | target | commit | day |",
        "| --- |" + " ---: |" * 7 + " --- |" * 3,
    ]
    for r in results(paths, maths=True):
        b, a = r["before"][-1], r["after"][-1]
        cells = [row[key] for key in ("accuracy", "format", "reward") for row in (b, a)]
        met = 0.30 <= b["accuracy"] <= 0.60 and a["accuracy"] - b["accuracy"] >= 0.25 and a["format"] >= 0.95
        out.append(table_row(r, cells, met))
    return "\n".join(out)


def results(paths: list[Path], *, maths: bool) -> list[dict[str, Any]]:
    """What the files hold, in the order of their names: of maths, or of the Atlas."""
    read = [json.loads(path.read_text()) for path in sorted(paths)]
    return [r for r in read if (r["variant"] == MATHS) == maths]


def table_row(r: dict[str, Any], cells: list[float | None], met: bool) -> str:
    line = " | ".join("" if c is None else f"{c:.2f}" for c in cells)
    return (
        f"| {r['variant']}, seed {r['seed']} | {line} | {r['train_seconds'] / 60:.1f} | {'met' if met else 'missed'} | "
        f"{r.get('commit', 'not named')[:12]} | {r.get('date', 'not named')} |"
    )


def _mmsr1(*args: str) -> None:
    done = subprocess.run([sys.executable, "-m", "megatron_mmsr1.cli", *args], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablations", action="store_true", help="run the ablations too, with the first seed")
    parser.add_argument("--algorithms", action="store_true", help="run the other algorithms too, with the first seed")
    parser.add_argument("--maths", action="store_true", help="run maths, instead of the Atlas")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that are there")
    parser.add_argument("settings", nargs="*", help="key=value, as for mmsr1 train")
    args = parser.parse_args()
    if not args.table:
        for seed in args.seeds:
            run(MATHS if args.maths else "grpo", seed, args.settings)
        for variant in [*(ABLATIONS if args.ablations else ()), *(ALGORITHMS if args.algorithms else ())]:
            run(variant, args.seeds[0], args.settings)
    print((maths_table if args.maths else table)(list(RESULTS.glob("learning-*.json"))))


if __name__ == "__main__":
    main()
