"""How many answers a second the rule-based rewards score, on one core: one process, and the seconds are CPU seconds of its own.

    python benchmarks/rewards.py --answers 20000

An answer is a whole trajectory, scored as a rollout worker scores it (`reward.score_trajectory`). The answers are of the kinds
that a model writes: a short reason, a search in every third, an answer in words, as a number, in LaTeX or as a choice.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

REASON = "The picture shows a river with a bridge of steel; the question asks for its city, which I know. " * 4
# (what was said, the golden answers). What only math-verify reads is measured apart.
WORDS = [("Lisbon", ["Lisbon", "Lisboa"]), ("the Eiffel Tower", ["Eiffel Tower"]), ("Porto", ["Lisbon"]), ("1889", ["1889"])]
NUMBERS = [("12", ["12"]), ("-0.5", ["-0.5"]), ("3.14", ["3.1416"]), ("90", ["65"])]
LATEX = [("0.5", ["\\frac{1}{2}"]), ("2\\sqrt{3}", ["\\sqrt{12}"]), ("x = 5", ["5"]), ("90^\\circ", ["65"]), ("12 cm", ["12"])]
CHOICES = [("B", ["B"]), ("(B) 35", ["B"]), ("35", ["B. 35"]), ("A. 12", ["B"])]
# Another number in each: it keeps what it has read before.
BEYOND = [
    pair
    for i in range(100)
    for pair in (
        (f"(-\\infty, {i}] \\cup [5{i}, \\infty)", [f"[5{i},\\infty)\\cup(-\\infty,{i}]"]),
        (f"{i}<x", [f"x>{i}"]),
        (f"\\log_2 {2**i}", [str(i)]),
    )
]
QUESTION = "How many are there?\nA. 12\nB. 35\nC. none of them"
REWARDS = {
    "mmsearch": WORDS,
    "multiple_choice": CHOICES,
    "math": NUMBERS,
    "openr1mm": NUMBERS,
    "openr1mm_accuracy_format": NUMBERS,
    "repetition": WORDS,
    "language": WORDS,
}


def made(answers: list[tuple[str, list[str]]], n: int) -> list[Any]:
    from megatron_mmsr1.trajectory import Status, Trajectory

    out = []
    for i in range(n):
        said, golds = answers[i % len(answers)]
        t = Trajectory("p", "g", i, QUESTION, golds, status=Status.ANSWERED)
        t.append("prompt", [1], QUESTION)
        if i % 3 == 0:
            t.append("assistant", [2], f"<reason>{REASON}</reason><search><img></search>", logprobs=[-0.1])
            t.append("tool", [3], "found")
        t.append("assistant", [4], f"<reason>{REASON}</reason><answer>{said}</answer><|im_end|>", logprobs=[-0.1])
        out.append(t)
    return out


def measure(name: str, answers: list[tuple[str, list[str]]], n: int) -> dict[str, Any]:
    from megatron_mmsr1 import reward

    settings = reward.get(name).settings
    trajectories = made(answers, n)
    for t in trajectories[:5]:  # imports, compiled patterns
        reward.score_trajectory(t, settings)
    started = time.process_time()
    for t in trajectories:
        reward.score_trajectory(t, settings)
    seconds = time.process_time() - started
    scored = [float(t.reward) for t in trajectories]
    return {
        "reward": name,
        "answers": n,
        "cpu_seconds": round(seconds, 3),
        "per_second": round(n / seconds),
        "mean": sum(scored) / n,
    }


def main() -> None:
    p = argparse.ArgumentParser(description="How many answers a second the rule-based rewards score, on one core")
    p.add_argument("--answers", type=int, default=20_000)
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "rewards.json")
    args = p.parse_args()
    from record import record

    rows = [measure(name, answers, args.answers) for name, answers in REWARDS.items()]
    rows.append(measure("math", LATEX, args.answers) | {"reward": "math, LaTeX and units"})
    rows.append(measure("math", BEYOND, min(args.answers, 300)) | {"reward": "math, what goes to math-verify"})
    for row in rows:
        print(f"{row['reward']:32} {row['per_second']:8} answers/s")
    record(args.out, rows)


if __name__ == "__main__":
    main()
