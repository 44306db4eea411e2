"""`mmsr1 maths build`: a made world of maths problems as files, in the columns that open-r1's data set was released in.

out/train.parquet, out/heldout.parquet   image {bytes, path}, problem, solution, original_question, original_answer
out/model/                               a tiny Qwen2.5-VL checkpoint with random weights
out/world.json                           the knobs
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from megatron_mmsr1.atlas.model import save_model
from megatron_mmsr1.atlas.picture import png, random_view
from megatron_mmsr1.atlas.spec import Views, parse_knobs, require_same
from megatron_mmsr1.data.files import write_text
from megatron_mmsr1.maths.picture import draw_task, random_look
from megatron_mmsr1.maths.tasks import Task, phrasings, solution, tasks_of
from megatron_mmsr1.maths.tokens import TOKENS

SPLITS = ("train", "heldout")


class MathsSpec(BaseModel):
    """A world. Two equal specs build byte-identical files."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 0
    train_questions: int = Field(default=2000, gt=0)
    heldout_questions: int = Field(default=400, gt=0)
    heldout_share: float = Field(
        default=1 / 3, ge=0.01, le=0.99, description="share of the tasks that only held-out problems ask"
    )
    views: Views = Views()


def load_spec(**knobs: Any) -> MathsSpec:
    """Raises UsageError that names the key."""
    return parse_knobs(MathsSpec, knobs, "maths spec")


def build(spec: MathsSpec, out: Path, *, model: bool = True) -> None:
    """Write a world into `out`, which is made if need be. Raises UsageError if it holds a world of another spec."""
    before = out / "world.json"
    if before.exists():
        require_same(out, json.loads(before.read_text()), spec)
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        _write(spec, split, out / f"{split}.parquet")
    if model:
        save_model(out / "model", seed=spec.seed, tokens=TOKENS)
    write_text(before, json.dumps(spec.model_dump(mode="json"), indent=1) + "\n")  # last: it says that the rest is complete


def picture(task: Task, views: Views, rng: random.Random) -> bytes:
    """PNG, 56 x 56: the task in a random look and view."""
    return png(draw_task(task, random_look(rng), random_view(rng, views)))


def _write(spec: MathsSpec, split: str, path: Path) -> None:
    from megatron_mmsr1.data import parquet

    texts = ("problem", "solution", "original_question", "original_answer")
    columns = {"image": {"bytes": "binary", "path": "string"}, **dict.fromkeys(texts, "string")}
    n = {"train": spec.train_questions, "heldout": spec.heldout_questions}[split]
    rng = random.Random(f"maths/{split}/{spec.seed}")
    own = tasks_of(split, spec.heldout_share, spec.seed)
    # Every task equally often, so that a world of any size asks all of them.
    asked = [own[i % len(own)] for i in range(n)]
    rng.shuffle(asked)
    parquet.write(path, [_row(t, spec, split, rng) for t in asked], columns)


def _row(task: Task, spec: MathsSpec, split: str, rng: random.Random) -> dict[str, Any]:
    problem = rng.choice(phrasings(split))
    return {
        "image": {"bytes": picture(task, spec.views, rng), "path": None},
        "problem": problem,
        "solution": solution(task),
        "original_question": problem,
        "original_answer": str(task.value),
    }
