"""The section `algorithm`: a recipe by name, and what of it is changed. Importable without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from megatron_mmsr1.config.section import Affects, Logging, Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.plugins.settings import PartSettings
from megatron_mmsr1.untyped import is_dict

if TYPE_CHECKING:
    from megatron_mmsr1.algorithm.recipe import Recipe

# Settings of common parts that may stand in the section itself.
SHORT = {
    "divide_by_std": ("advantage", "divide_by_std"),
    "clip_low": ("policy_loss", "low"),
    "clip_high": ("policy_loss", "high"),
}
RECIPES = "grpo, dr_grpo, dapo, gspo, cispo, sapo, gmpo, clip_cov, kl_cov, rloo, reinforce_pp_baseline, sft"

Chosen = SerializeAsAny[Section] | None


def _seam(package: str) -> PartSettings:
    return PartSettings(f"megatron_mmsr1.algorithm.{package}", default=None)


class AlgorithmConfig(Section):
    AFFECTS = Affects.TRAINING

    name: str = Field(default="grpo", description=f"the recipe: {RECIPES}, or your own (docs/extend/algorithm.md)")
    advantage: Annotated[Chosen, _seam("advantages")] = Field(
        default=None,
        description="another advantage estimator than the recipe's: grpo, dr_grpo, rloo, reinforce_pp, reinforce_pp_baseline, "
        "maxrl, gigpo, mars, fatal_aware, or your own",
    )
    correction: Annotated[Chosen, _seam("corrections")] = Field(
        default=None,
        description="another correction of the gap between engine and trainer: none, tis, icepop, mis, opsm, or your own",
    )
    policy_loss: Annotated[Chosen, _seam("policy_losses")] = Field(
        default=None,
        description="another policy loss than the recipe's: clip, gspo, cispo, sapo, gmpo, clip_cov, kl_cov, nll, or your own",
    )
    kl: Annotated[Chosen, _seam("kls")] = Field(
        default=None, description="another KL estimator than the recipe's: k1, k2, k3, unbiased"
    )
    average: Annotated[Chosen, _seam("averages")] = Field(
        default=None,
        description="how tokens are averaged: token (each token the same), sequence (each response the same: GRPO's own), "
        "constant (Dr.GRPO)",
    )
    divide_by_std: bool | None = Field(
        default=None, description="the advantage grpo divides by the group's deviation; default: true. Dr.GRPO does not"
    )
    clip_low: float | None = Field(default=None, ge=0, description="the policy loss's lower clip; default: its own (clip: 0.2)")
    clip_high: float | None = Field(
        default=None, ge=0, description="the policy loss's upper clip; default: its own (clip: 0.2)"
    )
    kl_coef: float = Field(default=0.001, ge=0, description="0 skips the reference pass altogether")
    kl_in: Literal["loss", "reward"] = Field(
        default="loss",
        description="reward: each token's advantage less kl_coef * the KL of it and of those after it in its response",
    )
    kl_target: float | None = Field(
        default=None,
        gt=0,
        description="kl_coef is adapted after each step towards this value of the metric kl; default: it stays",
    )
    kl_gain: float = Field(default=0.1, gt=0, lt=5, description="how fast: coef * (1 + kl_gain * error), error within +-0.2")
    reference_interval: int = Field(
        default=0, ge=0, description="every so many steps the policy becomes the reference; 0: the reference stays as it began"
    )
    entropy_coef: float = Field(default=0.0, description="of the tokens' entropy, which the loss is lowered by")
    distill_coef: float = Field(
        default=0.0,
        ge=0,
        description="on-policy distillation: each token's advantage less this * (policy - teacher) log-prob; the teacher is "
        "model.reference",
    )
    updates_per_step: int = Field(default=1, gt=0, description="optimizer steps over one rollout batch")
    logprob_alarm: Logging[float] = Field(
        default=0.05, gt=0, description="mean |trainer - engine| log-prob that is warned about"
    )

    @property
    def recipe(self) -> Recipe:
        """Raises UsageError for an unknown name."""
        return import_module("megatron_mmsr1.algorithm.recipes").REGISTRY.get(self.name)

    @property
    def supervised(self) -> bool:
        """Demonstrations in the place of rollouts."""
        return self.recipe.supervised

    def parts(self) -> dict[str, Section]:
        """The settings of every part: the recipe's, what the section names instead, and its short keys laid over them.

        Raises UsageError for a part that cannot be found and for a key that the part does not have. Loads torch.
        """
        from megatron_mmsr1.algorithm.recipe import SEAMS

        found: dict[str, Section] = {}
        for seam, package in SEAMS.items():
            chosen = getattr(self, seam) or getattr(self.recipe, seam)
            if chosen is None or (self.supervised and getattr(self.recipe, seam) is None):
                continue
            found[seam] = _seam(package).make(dict(chosen) if not isinstance(chosen, Section) else chosen)
        for short, (seam, key) in SHORT.items():
            value = getattr(self, short)
            if value is None or self.supervised:  # as kl_coef, they are about rollouts; a written config may hold them all
                continue
            part = found[seam]
            fields = type(part).model_fields
            name = getattr(part, "name", seam)
            if key not in fields:
                raise UsageError(f"algorithm.{short}={value}: the {seam} {name} has no such setting")
            own = getattr(part, key)
            if getattr(self, seam) is not None and own not in (fields[key].default, value):
                raise UsageError(f"algorithm.{short}={value} and algorithm.{seam}.{key}={own} disagree: give one of them")
            found[seam] = part.model_copy(update={key: value})
        self._fit_together(found)
        return found

    def _fit_together(self, parts: dict[str, Section]) -> None:
        """Raises UsageError for a policy loss and an average of which one undoes the other."""
        loss, average = (str(getattr(parts[s], "name", "")) for s in ("policy_loss", "average"))
        chosen = import_module("megatron_mmsr1.algorithm.policy_losses").REGISTRY.get(loss)
        refused: frozenset[str] = getattr(chosen, "refuses", frozenset[str]())
        if average in refused:
            raise UsageError(
                f"algorithm.policy_loss={loss} with algorithm.average={average}: its ratio is a response's, which an average "
                "over tokens would count once a token; set algorithm.average=sequence"
            )

    @model_validator(mode="before")
    @classmethod
    def _name_parts(cls, raw: Any) -> Any:
        """`policy_loss: {clip_high: 0.28}` without a name is about the recipe's own part."""
        if not is_dict(raw):
            return raw
        seams = import_module("megatron_mmsr1.algorithm.recipe").SEAMS
        unnamed = [s for s in seams if isinstance(raw.get(s), dict) and "name" not in raw[s]]
        if not unnamed:
            return raw
        try:
            recipe = import_module("megatron_mmsr1.algorithm.recipes").REGISTRY.get(str(raw.get("name", "grpo")))
        except UsageError as e:
            raise ValueError(str(e)) from e
        own = {s: getattr(recipe, s) for s in unnamed}
        return raw | {s: {"name": own[s].get("name", "") if own[s] else ""} | raw[s] for s in unnamed}

    @model_validator(mode="after")
    def _parts_exist(self) -> AlgorithmConfig:
        """What the person chose is there and fits; a plain recipe is not looked into, so that reading a config stays light."""
        try:
            recipe = self.recipe
            seams = import_module("megatron_mmsr1.algorithm.recipe").SEAMS
            chosen = [s for s in seams if getattr(self, s) is not None]
            if unused := [s for s in chosen if getattr(recipe, s) is None]:
                raise UsageError(f"algorithm.{unused[0]}: the recipe {self.name} has no {unused[0]}; leave it out")
            if chosen or any(getattr(self, k) is not None for k in SHORT):
                self.parts()
        except UsageError as e:
            raise ValueError(str(e)) from e
        return self
