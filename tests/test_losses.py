"""Policy losses, KL estimates, corrections and averages: hand-derived numbers, and the signs of their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.algorithm import advantage, correction, kl, policy_loss
from megatron_mmsr1.algorithm.composition import part
from megatron_mmsr1.algorithm.parts import Totals
from megatron_mmsr1.errors import UsageError

ONE = torch.tensor([0, 3])  # three tokens of one response


def ratios(*r: float) -> torch.Tensor:
    """Log-probs whose ratio to log-probs of zero is `r`."""
    return torch.tensor([math.log(x) for x in r], requires_grad=True)


def bounds(n: int) -> torch.Tensor:
    return torch.tensor([0, n])


def shares(name: str, weights: torch.Tensor, cu_seqlens: torch.Tensor, totals: Totals, **options: int) -> torch.Tensor:
    from megatron_mmsr1.algorithm import averages

    return part(averages.REGISTRY, name, options).shares(weights, cu_seqlens, totals)


# ----------------------------------------------------------------------------------------------------------- policy losses
def test_clipped_surrogate_golden() -> None:
    # bounds 0.8 and 1.2:  r = 2,  A = 2:  min(4, 2.4) = 2.4, bound;  r = 2, A = -2: min(-4, -2.4) = -4, free;
    #                      r = .5, A = 2:  min(1, 1.6) = 1, free;     r = .5, A = -2: min(-1, -1.6) = -1.6, bound.
    logprobs = ratios(2, 2, 0.5, 0.5)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0])
    loss = policy_loss("clip", logprobs, torch.zeros(4), advantages, bounds(4))
    assert loss.tolist() == pytest.approx([-2.4, 4.0, -1.0, 1.6])
    assert clipped("clip", logprobs, torch.zeros(4), advantages) == [1, 0, 0, 1]
    loss.sum().backward()
    # -r * A where free, 0 where bound.
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, 4.0, -1.0, 0.0])


def clipped(name: str, lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor, **options: float) -> list[int]:
    from megatron_mmsr1.algorithm import policy_losses

    loss: object = part(policy_losses.REGISTRY, name, options)
    return loss.clipped(lp, old, a, bounds(len(lp))).int().tolist()  # type: ignore[attr-defined]


def test_bounds_are_separate() -> None:
    # 1.25 is beyond 1 + 0.2 but within 1 + 0.28; 0.75 is beyond 1 - 0.2 but within 1 - 0.28.
    args = (ratios(1.25, 0.75), torch.zeros(2), torch.tensor([1.0, -1.0]))
    assert clipped("clip", *args, low=0.2, high=0.28) == [0, 1]
    assert clipped("clip", *args, low=0.28, high=0.2) == [1, 0]


def test_dual_clip_bounds_the_loss_of_a_bad_token() -> None:
    # r 10, A -4: the clipped surrogate's loss is 40, c * 4 = 12 with c 3. r 0.5, A 1: -0.5. r 1, A -1: 1, below 3.
    logprobs = ratios(0.5, 1, 10)
    loss = policy_loss("clip", logprobs, torch.zeros(3), torch.tensor([1.0, -1.0, -4.0]), ONE, dual=3.0)
    assert loss.tolist() == pytest.approx([-0.5, 1.0, 12.0])
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 1.0, 0.0])


@pytest.mark.parametrize("name", ["clip", "gspo", "cispo"])
def test_on_policy_every_loss_has_minus_the_advantage_for_its_gradient(name: str) -> None:
    logprobs = torch.tensor([-0.3, -4.0, -11.0], requires_grad=True)
    advantages = torch.tensor([1.5, -0.5, 0.0])
    loss = policy_loss(name, logprobs, logprobs.detach(), advantages, ONE)
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.5, 0.5, 0.0]
    assert clipped(name, logprobs, logprobs.detach(), advantages) == [0, 0, 0]
    if name != "cispo":
        assert loss.tolist() == [-1.5, 0.5, 0.0]


tokens = st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0), st.floats(-5, 5)), min_size=1, max_size=20)


@pytest.mark.parametrize("name", ["clip", "gspo", "cispo"])
@given(rows=tokens)
def test_gradient_never_points_against_the_advantage(name: str, rows) -> None:
    lp, old, adv = (torch.tensor(x, dtype=torch.float32) for x in zip(*rows, strict=True))
    lp.requires_grad_()
    loss = policy_loss(name, lp, old, adv, bounds(len(rows)))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert lp.grad is not None
    # A step against the gradient raises the log-prob of a good token and lowers that of a bad one, or leaves it.
    assert (lp.grad * adv <= 0).all()


def test_absurd_values_are_harmless() -> None:
    lp = torch.tensor([-1000.0, -0.5], requires_grad=True)
    for name in ("clip", "gspo", "cispo"):
        loss = policy_loss(name, lp, torch.tensor([0.0, -1000.0]), torch.tensor([1.0, -1.0]), bounds(2))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
    assert lp.grad is not None
    assert torch.isfinite(lp.grad).all()


def test_cispo_golden() -> None:
    # r = exp(logprobs - old) is [1, 1.14, 1.56, 0.4]; clipped to [0.8, 1.28] it is [1, 1.14, 1.28, 0.8]. Loss -w * A * logp:
    # 1 * 1 * .7 = .7; 1.14 * -.5 * 1.2 = -.684; 1.28 * 2 * .4 = 1.024; .8 * -1 * 2.1 = -1.68. Gradient -w * A.
    lp = torch.tensor([-0.7, -1.2, -0.4, -2.1], requires_grad=True)
    old = lp.detach() - torch.tensor([1, 1.14, 1.56, 0.4]).log()
    a = torch.tensor([1.0, -0.5, 2.0, -1.0])
    loss = policy_loss("cispo", lp, old, a, bounds(4), low=0.2, high=0.28)
    assert loss.tolist() == pytest.approx([0.7, -0.684, 1.024, -1.68])
    loss.sum().backward()
    assert lp.grad is not None
    assert lp.grad.tolist() == pytest.approx([-1.0, 0.57, -2.56, 0.8])
    assert clipped("cispo", lp, old, a, low=0.2, high=0.28) == [0, 0, 1, 1]


def test_gspo_golden() -> None:
    # r .5, 1, 1.5: s = (.75)**(1/3) = 0.908560, within the clip, so -s * A for A 1, -1, 2. The second response has a
    # third ratio that makes s 2.469678 (s**3 = 2 * 3 * r), above 1.2: clipped for A > 0, not for A < 0.
    third = 2.469678**3 / 6
    lp = ratios(0.5, 1, 1.5, 2, 3, third)
    a = torch.tensor([1.0, -1.0, 2.0] * 2)
    loss = policy_loss("gspo", lp, torch.zeros(6), a, torch.tensor([0, 3, 6]), low=0.2, high=0.2)
    assert loss.tolist() == pytest.approx([-0.90856, 0.90856, -1.81712, -1.2, 2.469678, -2.4], abs=1e-5)
    loss.sum().backward()
    assert lp.grad is not None
    # Each token moves by s * its own A, 0 where the response's ratio is clipped.
    assert lp.grad.tolist() == pytest.approx([-0.90856, 0.90856, -1.81712, 0, 2.469678, 0], abs=1e-5)


def test_nll_is_minus_the_log_prob() -> None:
    lp = torch.tensor([-2.0, -1.0], requires_grad=True)
    loss = policy_loss("nll", lp, lp.detach(), torch.zeros(2), bounds(2))
    assert loss.tolist() == [2.0, 1.0]
    loss.sum().backward()
    assert lp.grad is not None
    assert lp.grad.tolist() == [-1.0, -1.0]


# -------------------------------------------------------------------------------------------------------------- corrections
def test_truncated_importance_weights_golden() -> None:
    # exp(.5), exp(-.5), exp(1) capped at 2.
    old, engine = torch.tensor([-1.0, -1.5, -0.5]), torch.tensor([-1.5, -1.0, -1.5])
    assert correction("tis", old, engine, ONE, cap=2.0).tolist() == pytest.approx([1.648721, 0.606531, 2.0])
    # The response's geometric mean: exp((.5 - .5 + 1) / 3) = 1.395612; in two responses, exp(0) and exp(1) capped.
    assert correction("tis", old, engine, ONE, level="geometric").tolist() == pytest.approx([1.395612] * 3)
    two = correction("tis", old, engine, torch.tensor([0, 2, 3]), level="geometric", cap=2.5)
    assert two.tolist() == pytest.approx([1.0, 1.0, 2.5])
    assert correction("none", old, engine, ONE).tolist() == [1.0, 1.0, 1.0]


@given(
    st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0)), min_size=1, max_size=9),
    st.sampled_from(["token", "sequence", "geometric"]),
)
def test_weights_are_finite_capped_and_1_where_both_agree(rows, level: str) -> None:
    old, engine = (torch.tensor(x) for x in zip(*rows, strict=True))
    engine[0] = -torch.inf
    w = correction("tis", old, engine, bounds(len(rows)), level=level, cap=3.0)
    assert w.dtype == torch.float32 and bool(((w >= 0) & (w <= 3.0)).all())
    assert correction("tis", old, old, bounds(len(rows)), level=level).tolist() == [1.0] * len(rows)


# ----------------------------------------------------------------------------------------------------------------------- KL
def test_kl_golden() -> None:
    # logp -1 against 0, -15, -30: log-ratios -1, 14, 29 (k1); squares halved .5, 98, 420.5 (k2); k3: e - 2 = .718282,
    # e**-14 + 13 = 13.000001, e**-29 + 28. Clamped to 10 in value, the last two are 10 (and k1, k3 of 14 and 29 alike).
    lp, ref = torch.full((3,), -1.0), torch.tensor([0.0, -15.0, -30.0])
    assert kl("k1", lp, ref).tolist() == pytest.approx([-1, 14, 29])
    assert kl("k2", lp, ref).tolist() == pytest.approx([0.5, 98, 420.5])
    assert kl("k3", lp, ref).tolist() == pytest.approx([0.718282, 13.000001, 28.0], abs=1e-5)
    bounds = {"input_clamp": 20.0, "output_clamp": 10.0}
    assert kl("k1", lp, ref, **bounds).tolist() == pytest.approx([-1, 10, 10])
    assert kl("k2", lp, ref, **bounds).tolist() == pytest.approx([0.5, 10, 10])
    assert kl("k3", lp, ref, **bounds).tolist() == pytest.approx([0.718282, 10, 10], abs=1e-5)


def test_beyond_its_clamp_a_kl_has_no_gradient() -> None:
    # d = 4 clamped to 2: e**2 - 1 - 2 = 4.389056, no gradient; d = 1: e - 2, gradient 1 - e... of d alone; 1 - exp(1).
    lp = torch.tensor([-4.0, -1.0], requires_grad=True)
    value = kl("k3", lp, torch.zeros(2), input_clamp=2.0)
    assert value.tolist() == pytest.approx([4.389056, 0.718282], abs=1e-6)
    value.sum().backward()
    assert lp.grad is not None and lp.grad.tolist() == pytest.approx([0.0, 1 - math.e], abs=1e-6)


def test_unbiased_kl_is_k3_with_the_gradient_of_the_divergence() -> None:
    # On policy: d = ref - logp = .5, -1: k3 .148721, .367879; the gradient (1 - e**d) + (e**d - 1 - d) = -d.
    lp, ref = torch.tensor([-1.5, -1.0], requires_grad=True), torch.tensor([-1.0, -2.0])
    value = kl("unbiased", lp, ref)
    assert value.tolist() == pytest.approx([0.148721, 0.367879], abs=1e-6)
    value.sum().backward()
    assert lp.grad is not None and lp.grad.tolist() == pytest.approx([-0.5, 1.0], abs=1e-6)
    # Off policy the ratio, here e**.5 and e**-1, weighs both.
    old = lp.detach() - torch.tensor([0.5, -1.0])
    assert kl("unbiased", lp, ref, old_logprobs=old).tolist() == pytest.approx([0.245200, 0.135335], abs=1e-6)


def test_k3_gradient() -> None:
    # d = ln 2: 2 - 1 - ln 2 = 0.306853; d = -ln 2: 1/2 - 1 + ln 2 = 0.193147; equal: exactly 0.
    logprobs = torch.tensor([-1.0 - math.log(2), -1.0 + math.log(2), -1.0], requires_grad=True)
    value = kl("k3", logprobs, torch.full((3,), -1.0))
    assert value.tolist() == pytest.approx([0.306853, 0.193147, 0.0], abs=1e-6)
    value.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.0, 0.5, 0.0], abs=1e-6)  # 1 - exp(d)


@pytest.mark.parametrize("name", ["k2", "k3"])
@given(mine=st.floats(-60, 0), ref=st.floats(-60, 0))
def test_kl_is_never_negative_and_pulls_towards_the_reference(name: str, mine: float, ref: float) -> None:
    lp = torch.tensor([mine], requires_grad=True)
    value = kl(name, lp, torch.tensor([ref]))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert value.item() >= 0
    assert lp.grad is not None
    assert lp.grad.item() * (lp.item() - torch.tensor(ref).item()) >= 0


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_estimates_of_the_divergence(name: str) -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    assert (p * kl(name, p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)


# ----------------------------------------------------------------------------------------------------------------- averages
def test_averages_golden() -> None:
    # Losses 1, 1 | 4: over tokens 6 / 3 = 2; over responses (1 + 4) / 2 = 2.5; over a constant of 10, 6 / (2 * 10) = 0.3.
    losses, cu = torch.tensor([1.0, 1.0, 4.0]), torch.tensor([0, 2, 3])
    totals = Totals(tokens=3, weight=3, sequences=2)
    ones = torch.ones(3)
    assert (losses * shares("token", ones, cu, totals)).sum().item() == pytest.approx(2.0)
    assert (losses * shares("sequence", ones, cu, totals)).sum().item() == pytest.approx(2.5)
    assert (losses * shares("constant", ones, cu, totals, tokens=10)).sum().item() == pytest.approx(0.3)


responses = st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=5), min_size=1, max_size=8)


@pytest.mark.parametrize("name", ["token", "sequence", "constant"])
@given(losses=responses, cut=st.integers(0, 8))
def test_shares_of_any_split_sum_to_the_mean(name: str, losses: list[list[float]], cut: int) -> None:
    totals = Totals(*(float(n) for n in (sum(map(len, losses)), sum(map(len, losses)), len(losses))))

    def share(some: list[list[float]]) -> float:
        if not some:
            return 0.0
        values = torch.tensor([x for r in some for x in r])
        cu = torch.tensor([0, *(len(r) for r in some)]).cumsum(0)
        return (values * shares(name, torch.ones_like(values), cu, totals)).sum().item()

    per = [sum(r) / len(r) for r in losses]
    wanted = {
        "token": sum(map(sum, losses)) / sum(map(len, losses)),
        "sequence": sum(per) / len(per),
        "constant": sum(map(sum, losses)) / len(losses) / 1024,
    }[name]
    assert share(losses[:cut]) + share(losses[cut:]) == pytest.approx(wanted, abs=1e-5)
    assert share(losses) == pytest.approx(wanted, abs=1e-5)


def test_a_weight_of_two_is_two_copies_of_the_token() -> None:
    losses = torch.tensor([3.0, 1.0])
    weighted = shares("token", torch.tensor([2.0, 1.0]), bounds(2), Totals(2, 3, 1))
    assert (losses * weighted).sum().item() == pytest.approx((3 + 3 + 1) / 3)


# -------------------------------------------------------------------------------------------------------------------- names
def test_parts_by_name_and_their_options() -> None:
    assert advantage("grpo", [1.0, 0.0], [0, 0], divide_by_std=False).tolist() == [0.5, -0.5]
    assert advantage("dr_grpo", [1.0, 0.0], [0, 0]).tolist() == [0.5, -0.5]
    with pytest.raises(UsageError, match="there are cispo, clip,"):
        policy_loss("clp", torch.zeros(1), torch.zeros(1), torch.zeros(1), bounds(1))
    with pytest.raises(UsageError, match=r"policy_loss clip: hihg: .* its settings are low, high, dual"):
        policy_loss("clip", torch.zeros(1), torch.zeros(1), torch.zeros(1), bounds(1), hihg=1)
