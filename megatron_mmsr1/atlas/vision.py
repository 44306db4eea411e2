"""Pre-training of the vision tower, before any language: read an emblem's colours and shape from its features.

A real vision-language model starts from a tower that can see; so does this one. Trained only through the language model, it
learnt the field's colour and nothing else in 1,000 steps of the cold start (the charge stayed at chance): one word in a
conversation is a thin signal for 1,176 inputs a patch. Linear heads on the tower's output, thrown away afterwards, need half a
minute.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mmsr1.atlas.canvas import CORNERS
from megatron_mmsr1.atlas.picture import COLOURS, SHAPES, Emblem, draw, png, random_emblem, random_view
from megatron_mmsr1.atlas.spec import Views
from megatron_mmsr1.data.files import unfinished
from megatron_mmsr1.data.images import pixel_values

GRID = (1, 4, 4)  # patches of a 56-pixel picture
# The raw pixels of a patch are alike, so a step of Adam moves a patch embedding in their common direction by the sum of its
# 1,176 steps: it wants a smaller rate than the rest.
LR, LR_PATCHES = 1e-3, 2e-4
SCALE = 0.25  # features as loud as the language model's own states, not four times louder


def labels(e: Emblem) -> dict[str, int]:
    """What there is to see in an emblem, as class numbers."""
    colours = list(COLOURS)
    seen = {"field": colours.index(e.field), "charge": colours.index(e.charge), "shape": SHAPES.index(e.shape)}
    return seen | {corner: colours.index(dot) for corner, dot in zip(CORNERS, e.dots, strict=True)}


@dataclass(frozen=True)
class Sight:
    """What a tower is to see: for each label the number of its classes, and how to draw a 56-pixel PNG with its labels."""

    classes: dict[str, int]
    shown: Callable[[random.Random], tuple[bytes, dict[str, int]]]


def shown(rng: random.Random) -> tuple[bytes, dict[str, int]]:
    """A fresh emblem in a random view."""
    e = random_emblem(rng)
    return png(draw(e, random_view(rng, Views()))), labels(e)


EMBLEMS = Sight(
    {"field": len(COLOURS), "charge": len(COLOURS), "shape": len(SHAPES), **dict.fromkeys(CORNERS, len(COLOURS))}, shown
)


def pretrain(
    checkpoint: Path,
    sight: Sight = EMBLEMS,
    *,
    steps: int = 400,
    batch: int = 64,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
) -> dict[str, float]:
    """Train the vision tower of the checkpoint in place, all other weights untouched. Returns the share of 256 fresh
    pictures that the heads read right, for each label. `report(step, loss)` is called as it goes.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    rng = random.Random(f"atlas/eyes/{seed}")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    tower = model.model.visual
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = GRID[1] * GRID[2] // 4 * tower.config.out_hidden_size
        heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, n) for name, n in sight.classes.items()})
    patches = [p for n, p in tower.named_parameters() if "patch_embed" in n]
    others = [p for n, p in tower.named_parameters() if "patch_embed" not in n] + list(heads.parameters())
    groups = [{"params": patches, "lr": LR_PATCHES}, {"params": others, "lr": LR}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / 30) * min(1.0, (1 - step / steps) / 0.4 + 0.02)

    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for step in range(steps):
        scores, wanted = _read(tower, heads, sight, rng, batch)
        loss = torch.stack([torch.nn.functional.cross_entropy(scores[n], wanted[n]) for n in sight.classes]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*patches, *others], 1.0)
        optimizer.step()
        rates.step()
        if report:
            report(step, float(loss.detach()))
    with torch.no_grad():
        scores, wanted = _read(tower, heads, sight, rng, 256)
        right = {n: float((scores[n].argmax(-1) == wanted[n]).float().mean()) for n in sight.classes}
        for p in tower.merger.mlp[-1].parameters():
            p.mul_(SCALE)
    _replace_tower(checkpoint, tower.state_dict())
    return right


def _read(tower: Any, heads: Any, sight: Sight, rng: random.Random, n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores [n, classes] and labels [n] of n fresh pictures."""
    import numpy as np
    import torch

    pictures = [sight.shown(rng) for _ in range(n)]
    pixels = np.concatenate([pixel_values(picture) for picture, _ in pictures])
    features = tower(torch.from_numpy(pixels), grid_thw=torch.tensor([GRID] * n)).pooler_output.reshape(n, -1)
    wanted = {name: torch.tensor([seen[name] for _, seen in pictures]) for name in sight.classes}
    return {name: head(features) for name, head in heads.items()}, wanted


def _replace_tower(checkpoint: Path, weights: dict[str, Any]) -> None:
    """Put the tower's weights into the checkpoint's file as it stands, whatever prefix its writer chose."""
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    kept = load_file(path)
    prefix = next(k for k in kept if "visual." in k).partition("visual.")[0] + "visual."
    kept |= {prefix + name: w.detach().contiguous() for name, w in weights.items()}
    with unfinished(path) as part:
        save_file(kept, part, metadata={"format": "pt"})


def pretrain_command(world: str, sight: Sight, steps: int) -> None:
    import sys

    from megatron_mmsr1.errors import UsageError
    from megatron_mmsr1.procs.progress import progress

    if len(sys.argv) != 2:
        raise UsageError(f"usage: python -m megatron_mmsr1.{world}.vision CHECKPOINT")
    with progress("Vision tower", steps, every_s=2.0) as bar:
        right = pretrain(Path(sys.argv[1]), sight, steps=steps, report=lambda _, loss: bar.step(loss=loss))
    print("read right of 256 fresh pictures: " + ", ".join(f"{name} {share:.0%}" for name, share in right.items()))


if __name__ == "__main__":
    from megatron_mmsr1.errors import exit_with_message

    exit_with_message(lambda: pretrain_command("atlas", EMBLEMS, steps=400))
