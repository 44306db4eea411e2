"""The trainer's memory, given to engines between two steps."""

from __future__ import annotations

from typing import Any

import torch

from megatron_cases.harness import LAYOUTS, Lab
from megatron_mmsr1.megatron.device_memory import gradients_of, states_of, weights_of

NAMES = ("loss", "kl", "grad_norm", "entropy")


def released(lab: Lab, layout: str = "tp1", *, distributed: bool = True, dtype: str = "float32", **model: Any) -> None:
    """Three steps, or three with nothing of the model, its reference, gradients and optimizer on the device in between: the
    same numbers and weights, bit by bit. Weights can be published while the rest is away."""
    settings = {
        "megatron": LAYOUTS[layout] | {"distributed_optimizer": distributed},
        "algorithm": {"kl_coef": 0.1},
        "model": {"dtype": dtype, "freeze_vision": True} | model,
    }
    straight = lab.actor(**settings)
    wanted = []
    for _ in range(3):
        metrics = straight.train_step(lab.trajectories, lab.advantages)
        wanted.append(({n: metrics[n] for n in NAMES}, straight.weights_id(), {n: w.clone() for n, w in straight.weights()}))
    lent = lab.actor(**settings)
    for numbers, name, weights in wanted:
        metrics = lent.train_step(lab.trajectories, lab.advantages)
        assert {n: metrics[n] for n in NAMES} == numbers
        assert lent.weights_id() == name
        lent.release(weights=False)
        assert not any(g.untyped_storage().nbytes() for g in gradients_of(lent.model))
        own = {w.untyped_storage()._cdata for w in weights_of(lent.model)}
        states = [s for s in states_of(lent.optimizer) if s.untyped_storage()._cdata not in own]
        assert states and not any(s.untyped_storage().nbytes() for s in states)
        assert all(torch.equal(w, weights[n]) for n, w in lent.weights())
        first = lent.memory.held
        assert lent.reference is not None and lent.policy.vision.cached()
        lent.release(weights=True)
        assert lent.memory.held > first > 0
        held = [*weights_of(lent.model), *weights_of(lent.reference.model), *lent.policy.vision.cached()]
        held += states_of(lent.optimizer)
        storages = [s for x in held if (s := x.untyped_storage()).resizable()]  # the others are mapped from a file
        assert storages and not any(s.nbytes() for s in storages)
        assert lent.weights_id() == name
        lent.restore()
        assert lent.memory.held == 0 and lent.weights_id() == name
    assert all(torch.equal(w, wanted[-1][2][n]) for n, w in lent.weights())
