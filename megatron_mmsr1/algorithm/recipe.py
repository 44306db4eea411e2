"""A recipe: which part of each kind an algorithm is made of. Read when a config is; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The seams of a recipe, in the order in which they act, and the package of each.
SEAMS = {
    "advantage": "advantages",
    "correction": "corrections",
    "policy_loss": "policy_losses",
    "kl": "kls",
    "average": "averages",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Each part as the config would name it: `{"name": ..., SETTING: ...}`. `supervised`: demonstrations in the place of
    rollouts, so that there are no rewards, no old and no engine log-probs; only `policy_loss` and `average` are used then."""

    policy_loss: Mapping[str, Any]
    average: Mapping[str, Any]
    advantage: Mapping[str, Any] | None = None
    correction: Mapping[str, Any] | None = None
    kl: Mapping[str, Any] | None = None
    supervised: bool = False


def broken_rules(name: str, recipe: Any) -> list[str]:
    """The registry's check of a recipe."""
    if not isinstance(recipe, Recipe):
        return ["it must be a megatron_mmsr1.algorithm.recipe.Recipe"]
    seams = ("policy_loss", "average") if recipe.supervised else tuple(SEAMS)
    parts: dict[str, Mapping[str, Any] | None] = {s: getattr(recipe, s) for s in seams}
    return [f"its {s} names no part" for s, part in parts.items() if not (part and part.get("name"))]
