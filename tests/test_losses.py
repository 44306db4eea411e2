"""Losses by hand-derived numbers, and the signs of their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.algorithm.aggregate import token_mean
from megatron_mmsr1.algorithm.kl import k3
from megatron_mmsr1.algorithm.losses import policy_loss
from megatron_mmsr1.algorithm.sft import nll


def ratios(*r: float) -> torch.Tensor:
    """Log-probs whose ratio to log-probs of zero is `r`."""
    return torch.tensor([math.log(x) for x in r], requires_grad=True)


def test_clipped_surrogate_golden() -> None:
    # bounds 0.8 and 1.2:  r = 2,  A = 2:  min(4, 2.4) = 2.4, bound;  r = 2, A = -2: min(-4, -2.4) = -4, free;
    #                      r = .5, A = 2:  min(1, 1.6) = 1, free;     r = .5, A = -2: min(-1, -1.6) = -1.6, bound.
    logprobs = ratios(2, 2, 0.5, 0.5)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0])
    loss, clipped = policy_loss(logprobs, torch.zeros(4), advantages, torch.ones(4), 0.2, 0.2)
    assert loss.tolist() == pytest.approx([-2.4, 4.0, -1.0, 1.6])
    assert clipped.tolist() == [1, 0, 0, 1]
    loss.sum().backward()
    # -r * A where free, 0 where bound.
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, 4.0, -1.0, 0.0])


def test_bounds_are_separate() -> None:
    # 1.25 is beyond 1 + 0.2 but within 1 + 0.28; 0.75 is beyond 1 - 0.2 but within 1 - 0.28.
    args = (torch.zeros(2), torch.tensor([1.0, -1.0]), torch.ones(2))
    assert policy_loss(ratios(1.25, 0.75), *args, 0.2, 0.28)[1].tolist() == [0, 1]
    assert policy_loss(ratios(1.25, 0.75), *args, 0.28, 0.2)[1].tolist() == [1, 0]


def test_on_policy_loss_is_minus_the_advantage_and_its_gradient_too() -> None:
    logprobs = torch.tensor([-0.3, -4.0, -11.0], requires_grad=True)
    advantages = torch.tensor([1.5, -0.5, 0.0])
    loss, clipped = policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(3), 0.2, 0.2)
    assert loss.tolist() == [-1.5, 0.5, 0.0]
    assert clipped.tolist() == [0, 0, 0]
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.5, 0.5, 0.0]


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0), st.floats(-5, 5), st.booleans()), min_size=1, max_size=20))
def test_gradient_never_points_against_the_advantage(rows) -> None:
    lp, old, adv, mask = (torch.tensor(x, dtype=torch.float32) for x in zip(*rows, strict=True))
    lp.requires_grad_()
    loss, clipped = policy_loss(lp, old, adv, mask, 0.2, 0.28)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert lp.grad is not None
    # A step against the gradient raises the log-prob of a good token and lowers that of a bad one, or leaves it.
    assert (lp.grad * adv <= 0).all()
    assert (lp.grad[mask == 0] == 0).all()
    assert (lp.grad[clipped.bool()] == 0).all()
    assert (loss[mask == 0] == 0).all()


def test_masked_and_absurd_values_are_harmless() -> None:
    lp = torch.tensor([float("nan"), float("-inf"), -1000.0, -0.5], requires_grad=True)
    old = torch.tensor([0.0, float("-inf"), 0.0, -1000.0])
    loss, clipped = policy_loss(lp, old, torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([0, 0, 1, 1]), 0.2, 0.2)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert loss[:2].tolist() == [0, 0]
    assert clipped[:2].tolist() == [0, 0]
    assert lp.grad is not None
    assert torch.isfinite(lp.grad).all()


def test_k3_golden() -> None:
    # d = ln 2: 2 - 1 - ln 2 = 0.306853; d = -ln 2: 1/2 - 1 + ln 2 = 0.193147; equal: exactly 0.
    logprobs = torch.tensor([-1.0 - math.log(2), -1.0 + math.log(2), -1.0], requires_grad=True)
    value = k3(logprobs, torch.full((3,), -1.0))
    assert value.tolist() == pytest.approx([0.306853, 0.193147, 0.0], abs=1e-6)
    value.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.0, 0.5, 0.0], abs=1e-6)  # 1 - exp(d)


@given(st.floats(-60, 0), st.floats(-60, 0))
def test_k3_is_never_negative_and_pulls_towards_the_reference(mine: float, ref: float) -> None:
    lp = torch.tensor([mine], requires_grad=True)
    value = k3(lp, torch.tensor([ref]))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert value.item() >= 0
    assert lp.grad is not None
    assert lp.grad.item() * (lp.item() - torch.tensor(ref).item()) >= 0


def test_k3_is_an_unbiased_estimate_of_the_divergence() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)


def test_k3_mask_hides_padding() -> None:
    lp = torch.tensor([float("nan"), -1.0], requires_grad=True)
    value = k3(lp, torch.tensor([0.0, -1.0]), torch.tensor([0, 1]))
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert lp.grad is not None
    assert lp.grad.tolist() == [0, 0]


@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=20), st.integers(1, 19))
def test_shares_of_any_split_sum_to_the_mean(rows, cut: int) -> None:
    values, mask = (torch.tensor(x) for x in zip(*rows, strict=True))
    tokens = int(mask.sum())
    if not tokens:
        with pytest.raises(ValueError, match="nothing"):
            token_mean(values, mask, tokens)
        return
    parts = token_mean(values[:cut], mask[:cut], tokens) + token_mean(values[cut:], mask[cut:], torch.tensor(tokens))
    assert parts.item() == pytest.approx(values[mask].mean().item(), abs=1e-5)


def test_masked_values_do_not_matter() -> None:
    assert token_mean(torch.tensor([float("nan"), 3.0]), torch.tensor([0, 1]), 2).item() == 1.5


def test_nll_weighs_tokens() -> None:
    lp = torch.tensor([-2.0, -1.0, float("-inf")], requires_grad=True)
    loss = nll(lp, torch.tensor([1.0, 0.5, 0.0]))
    assert loss.tolist() == [2.0, 0.5, 0.0]
    loss.sum().backward()
    assert lp.grad is not None
    assert lp.grad.tolist() == [-1.0, -0.5, 0.0]
