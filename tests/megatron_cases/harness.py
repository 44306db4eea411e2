"""How a case builds an actor and what it needs of its surroundings. A torchrun start costs ~15 s, so that one process group
runs many cases; each case ends before the next begins, on every rank."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from megatron_cases import tiny
from megatron_mmsr1.config import RunConfig, parse
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.models import of_checkpoint
from megatron_mmsr1.trajectory import Trajectory


class Lab:
    """The shared directory, the conversations and a maker of actors."""

    def __init__(self, root: Path, world: int, rank: int, model: str = "tiny") -> None:
        self.root, self.world, self.rank, self.model = root, world, rank, model
        self.store = ImageStore(None)
        files = of_checkpoint(root / model)
        self.rule, sees = files.pictures, files.family.sees_pictures
        self.trajectories = tiny.conversations(self.store, rule=self.rule, pictures=sees)
        self.advantages = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0]

    def of(self, model: str) -> Lab:
        """The same over another checkpoint, which keeps numbers of its own."""
        return Lab(self.root, self.world, self.rank, model)

    def config(self, *, path: str | None = None, **sections: dict[str, Any]) -> RunConfig:
        raw: dict[str, Any] = {
            "model": {"path": str(self.root / (path or self.model)), "dtype": "float32"} | sections.get("model", {}),
            "output": str(self.root / "out"),
            "train": {"ranks": self.world} | sections.get("train", {}),
            "protocol": {"max_prompt_tokens": 1, "max_turn_tokens": 1},  # so that a tiny budget of tokens is allowed
            "megatron": {"tokens_per_microbatch": 100} | sections.get("megatron", {}),
            "optimizer": {"lr": 1e-3} | sections.get("optimizer", {}),
            "algorithm": {"kl_coef": 0.0} | sections.get("algorithm", {}),
            "rollout": sections.get("rollout", {}),
        }
        return parse(raw)

    def actor(self, *, path: str | None = None, **sections: dict[str, Any]) -> Any:
        from megatron_mmsr1.megatron.actor import MegatronActor

        gc.collect()  # the last case's actor holds process groups
        return MegatronActor(self.config(path=path, **sections), self.store, total_steps=10)

    def gradients(self, actor: Any, trajectories: list[Trajectory] | None = None, **step: Any) -> dict[str, torch.Tensor]:
        """The gradient of each weight under its Hugging Face name, read off one update of `READABLE`."""
        from safetensors.torch import load_file

        target = self.root / f"grad_{self.world}"
        actor.export(target)
        before = load_file(target / "model.safetensors")
        chosen = self.trajectories if trajectories is None else trajectories
        actor.train_step(chosen, step.get("advantages", self.advantages[: len(chosen)]))
        actor.export(target)
        after = load_file(target / "model.safetensors")
        # READABLE moves a weight by g / (1 + |g|), so that the gradient is d / (1 - |d|) for a step of -d.
        return {n: (d := before[n] - after[n]) / (1 - d.abs()) for n in before}

    def keep(self, name: str, value: Any) -> None:
        if self.rank == 0:
            torch.save(value, self.root / f"{self.model}_{name}.pt")

    def kept(self, name: str) -> Any:
        return torch.load(self.root / f"{self.model}_{name}.pt")


# Adam without memory and with an eps of 1 at a rate of 1: its step shows the gradient.
READABLE = {"lr": 1.0, "eps": 1.0, "betas": [0.0, 0.0], "clip_grad": 0.0}

LAYOUTS = {
    "tp1": {},
    "offload": {"offload": {"optimizer": 0.5}},
    "tp2_sp_inputs": {"tensor_parallel": 2, "sequence_parallel": True, "offload": {"activations": True}},
    "tp2": {"tensor_parallel": 2},
    "tp2_sp": {"tensor_parallel": 2, "sequence_parallel": True},
    "pp2": {"pipeline_parallel": 2},
    "dp2": {},
    "tp2_pp2": {"tensor_parallel": 2, "pipeline_parallel": 2},
    "tp2_pp2_sp": {"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True},
    "tp2_dp2_sp": {"tensor_parallel": 2, "sequence_parallel": True},
    "dp4": {},
    "cp2": {"context_parallel": 2},
    "cp4": {"context_parallel": 4},
    "cp2_ep2": {"context_parallel": 2, "expert_parallel": 2},
    "cp2_dp2": {"context_parallel": 2},
    "tp2_cp2_sp": {"tensor_parallel": 2, "context_parallel": 2, "sequence_parallel": True},
    "pp2_cp2": {"pipeline_parallel": 2, "context_parallel": 2},
    "ep2": {"expert_parallel": 2},
    "ep2_edp2": {"expert_parallel": 2},
    "ep2_pp2": {"expert_parallel": 2, "pipeline_parallel": 2},
    "ep2_tp2": {"expert_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True},
    "ep2_etp2_tp2": {"expert_parallel": 2, "expert_tensor_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True},
    "pp2_uneven": {"pipeline_parallel": 2, "pipeline_split": [3, 1]},
    "vpp2": {"pipeline_parallel": 2, "virtual_pipeline": 2},
    "ep2_vpp2": {"expert_parallel": 2, "pipeline_parallel": 2, "virtual_pipeline": 2},
    "vpp2_tp2_sp": {"pipeline_parallel": 2, "virtual_pipeline": 2, "tensor_parallel": 2, "sequence_parallel": True},
    "etp1_tp2": {"expert_tensor_parallel": 1, "tensor_parallel": 2, "sequence_parallel": True},
}


def auto_model(path: Path) -> Any:
    """transformers' class for the checkpoint there."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if of_checkpoint(path).family.sees_pictures else AutoModelForCausalLM


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float, what: str) -> None:
    worst = (a - b).abs().max().item()
    assert worst <= tolerance, f"{what}: {worst:.2e} apart, allowed {tolerance:.0e}"


def same_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal to fp32 rounding: the weights that carry them are of order 1, and sums run in other orders."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        scale = wanted[name].abs().max().item()
        close(found[name], wanted[name], 3e-7 + 1e-5 * scale, name)


def raises(kind: type[Exception], *words: str) -> Any:
    import re

    import pytest

    return pytest.raises(kind, match="(?s)" + ".*".join(re.escape(w) for w in words))
