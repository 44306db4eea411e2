"""Pre-training of the vision tower on this world's pictures: `python -m megatron_mmsr1.maths.vision CHECKPOINT`."""

from __future__ import annotations

import random

from megatron_mmsr1.atlas.spec import Views
from megatron_mmsr1.atlas.vision import Sight, pretrain_command
from megatron_mmsr1.errors import exit_with_message
from megatron_mmsr1.maths.build import picture
from megatron_mmsr1.maths.tasks import DIGITS, OPERATORS, TASKS


def shown(rng: random.Random) -> tuple[bytes, dict[str, int]]:
    task = rng.choice(TASKS)
    return picture(task, Views(), rng), {
        "left": task.left,
        "operator": OPERATORS.index(task.operator),
        "right": task.right,
    }


TASK_SIGHT = Sight({"left": len(DIGITS), "operator": len(OPERATORS), "right": len(DIGITS)}, shown)

if __name__ == "__main__":
    exit_with_message(lambda: pretrain_command("maths", TASK_SIGHT, steps=240))
