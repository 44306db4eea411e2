"""The trainer's Adam: moments in the host's memory change no bit, and moments in bfloat16 stay near."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from megatron_mmsr1.config import parse
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron.adam import MOMENTS, GroupStepAdam

SHAPES = ((40, 3), (7,), (5, 5), (64,))  # 216 numbers


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def made(params: list[Any], on_host: float = 0.0, dtype: torch.dtype | None = None) -> GroupStepAdam:
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
    adam = GroupStepAdam(groups, lr=1e-2, betas=(0.9, 0.95))
    adam.keep(on_host, dtype)
    return adam


def updated(adam: GroupStepAdam, params: list[torch.nn.Parameter], first: int = 0, steps: int = 4) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for i, p in enumerate(params):
            p.grad = None if (step, i) == (1, 2) else torch.randn(p.shape, generator=generator)
        adam.step()


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.3, 1), (0.55, 1), (0.6, 3), (1.0, 4)])
def test_moments_on_the_host_give_the_same_bits(share: float, held: int) -> None:
    """Whole tensors until the share is reached: of 216 numbers the first tensor has 120, the first two 127, three 152."""
    plain, ours = weights(), weights()
    updated(made(plain), plain)
    adam = made(ours, share)
    assert len(adam.on_host) == held
    updated(adam, ours)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(plain, weights(), strict=True))


def test_moments_in_bfloat16_are_kept_in_it_and_stay_near() -> None:
    """Each rounding is off by at most 2^-9 of a moment; a step is at most the learning rate of 0.01 long or so."""
    plain, ours = weights(), weights()
    updated(made(plain), plain)
    adam = made(ours, 0.5, torch.bfloat16)
    updated(adam, ours)
    assert all(adam.state[p][k].dtype is torch.bfloat16 for p in ours for k in MOMENTS)
    off = max(float((a - b).abs().max().detach()) for a, b in zip(plain, ours, strict=True))
    assert 0 < off < 4 * 0.01 * 2**-7


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_state_that_is_read_back_goes_on_bit_by_bit(dtype: torch.dtype | None) -> None:
    """torch reads it back where the parameters are and in their type: the next update puts it back."""
    straight = weights()
    adam = made(straight, 0.6, dtype)
    updated(adam, straight, steps=2)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in straight]
    other = made(resumed, 0.6, dtype)
    other.load_state_dict(copy.deepcopy(adam.state_dict()))
    for each, params in ((adam, straight), (other, resumed)):
        updated(each, params, first=2, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    assert all(other.state[p][k].dtype is (dtype or torch.float32) for p in resumed for k in MOMENTS)


def test_a_moment_that_bfloat16_would_hold_still_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optimizer\.moments_dtype=bfloat16 with optimizer\.betas"):
        parse({"model": {"path": "m"}, "optimizer": {"moments_dtype": "bfloat16", "betas": [0.9, 0.999]}})
    moment = torch.ones(1, dtype=torch.bfloat16)
    assert (moment.float() * 0.999).bfloat16() == moment > (moment.float() * 0.99).bfloat16()
