"""Numbers of each part that were worked out by hand or are published in the tests of other trainers, with how they come about,
and each gradient against autograd of the formula as it is written in the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_mmsr1.algorithm import advantage, advantages, correction, corrections, policy_loss, policy_losses
from megatron_mmsr1.algorithm.composition import part
from megatron_mmsr1.algorithm.groups import returns, whitened
from megatron_mmsr1.algorithm.kl_control import adapted
from megatron_mmsr1.algorithm.parts import Rollout, RolloutTurn
from megatron_mmsr1.errors import UsageError

# Old log-probs -1; the policy's ratios to them .5, 1, 1.5; the engine's ratios exp(-.5), exp(.5), exp(-.2).
A = torch.tensor([1.0, -1.0, 2.0])
OLD = torch.full((3,), -1.0)
NOW = torch.tensor([-1.69315, -1.0, -0.59453])
ENGINE = torch.tensor([-0.5, -1.5, -0.8])
ONE = torch.tensor([0, 3])


def near(values: float | Sequence[float], abs: float = 1e-4) -> Any:
    return pytest.approx(values, abs=abs)


# -------------------------------------------------------------------------------------------------------------- advantages
@pytest.mark.parametrize(
    ("name", "rewards", "groups", "wanted"),
    [
        # 6 - 3, 3 - 6 | 9 - 12, 12 - 9 | alone.
        ("rloo", [6, 3, 9, 12, 1], "aabbc", [3, -3, -3, 3, 0]),
        # Three others of mean 2: 4 - 2; 0 - 10 / 3.
        ("rloo", [4, 0, 2, 4], "aaaa", [2, -10 / 3, -2 / 3, 2]),
        # Less the mean 4.5 and 10.5.
        ("dr_grpo", [6, 3, 9, 12], "aabb", [1.5, -1.5, -1.5, 1.5]),
        # The same over the mean; 1/4 is the mean of 1, 0, 0, 0; no success, no advantage.
        ("maxrl", [6, 3, 9, 12], "aabb", [1.5 / 4.5, -1.5 / 4.5, -1.5 / 10.5, 1.5 / 10.5]),
        ("maxrl", [1, 0, 0, 0, 0, 0], "aaaabb", [3, -1, -1, -1, 0, 0]),
        # Mean 2.5, variance ((.5)**2 * 2) / 1: whitened over the batch, groups or not.
        ("reinforce_pp", [3, 2], "ab", [0.7071, -0.7071]),
        # Centred in groups 1, -1, 2, -2; mean 0, sample variance 10 / 3.
        ("reinforce_pp_baseline", [2, 0, 5, 1], "aabb", [x / math.sqrt(10 / 3) for x in (1, -1, 2, -2)]),
        # GRPO gives +-1/sqrt(2) in a and 0 in b: mean 0, sample variance (1/2 + 1/2) / 3, so +-sqrt(3/2).
        ("mars", [1, 0, 1, 1], "aabb", [math.sqrt(1.5), -math.sqrt(1.5), 0, 0]),
    ],
)
def test_advantages(name: str, rewards: list[float], groups: str, wanted: list[float]) -> None:
    assert advantage(name, rewards, list(groups)).tolist() == near(wanted)


@pytest.mark.parametrize("name", advantages.REGISTRY.names())
def test_equal_rewards_give_no_advantage_in_any_estimator(name: str) -> None:
    assert advantage(name, [0.1] * 7, [0, 0, 0, 1, 1, 1, 2]).tolist() == [0.0] * 7


def test_maxrl_refuses_negative_rewards() -> None:
    with pytest.raises(UsageError, match="no reward may be negative"):
        advantage("maxrl", [1.0, -2.0], [0, 0])


def test_returns_are_discounted_over_the_policys_steps_alone() -> None:
    assert returns([1, 2, 3], 1.0) == [6, 5, 3]
    assert returns([1, 2, 3], 0.5) == [2.75, 3.5, 3]
    assert returns([1, 2], 1.0) == [3, 2]  # a third step that is an observation's is none


def rollout(*turns: int | tuple[int, str], failed: tuple[int, ...] = (), answered: bool = True) -> Rollout:
    """Turns of so many tokens, or (tokens, key); `failed`: the turns whose call did."""
    full = [(t, "") if isinstance(t, int) else t for t in turns]
    return Rollout(tuple(RolloutTurn(n, key, i in failed) for i, (n, key) in enumerate(full)), answered)


def per_token(name: str, rewards: list[float], groups: str, rollouts: list[Rollout], **options: Any) -> list[list[float]]:
    estimator: Any = part(advantages.REGISTRY, name, options)
    return [v.tolist() for v in estimator.per_token(rewards, list(groups), rollouts)]


def test_reinforce_pp_normalises_the_tokens_returns() -> None:
    # gamma .5: rollout 1 of three tokens has the returns .25, .5, 1, rollout 2 of one token 0. Mean .4375; squares of the
    # differences .03515625, .00390625, .31640625, .19140625, sum .546875; divisor 3.
    found = per_token("reinforce_pp", [1.0, 0.0], "ab", [rollout(1, 2), rollout(1)], gamma=0.5)
    s = math.sqrt(0.546875 / 3)
    assert found[0] == near([-0.1875 / s, 0.0625 / s, 0.5625 / s]) and found[1] == near([-0.4375 / s])


def test_reinforce_pp_baseline_whitens_over_tokens() -> None:
    # Centred .5 and -.5 of 3 and 1 tokens: mean .25; variance (3 * .0625 + .5625) / 3 = .25.
    found = per_token("reinforce_pp_baseline", [1.0, 0.0], "aa", [rollout(2, 1), rollout(1)])
    assert found[0] == near([0.5] * 3) and found[1] == near([-1.5])
    assert whitened(torch.tensor([0.5, -0.5]), torch.tensor([3.0, 1.0])).tolist() == near([0.5, -1.5])


def test_gigpo() -> None:
    # Rollout advantages +-.5. Discounted returns of A .25, .5, 1, of B 0: the first turns share their state, mean .125, so
    # +-.125; every later turn is alone in its state.
    rows = [0, 0, 1, 0, 0, 0]
    keys = ["", "a1", "a2", "", "b1", "b2"]
    found = advantage("gigpo", rows, ["g"] * 6, rollout_ids=list("AAABBB"), keys=keys, gamma=0.5, weight=1.0)
    assert found.tolist() == near([0.625, 0.5, 0.5, -0.625, -0.5, -0.5])
    turns = [rollout((2, ""), (1, "a1"), (3, "a2")), rollout((1, ""), (1, "b1"), (1, "b2"))]
    assert per_token("gigpo", [1.0, 0.0], "gg", turns, gamma=0.5) == [
        near([0.625, 0.625, 0.5, 0.5, 0.5, 0.5]),
        near([-0.625, -0.5, -0.5]),
    ]


def test_gigpo_joins_turns_that_read_the_same_result_in_the_same_group_only() -> None:
    # Equal results after the first turn: returns 1 and 0 of the second turns have the mean .5. Group h has equal keys too.
    turns = [rollout((1, ""), (1, "same")), rollout((1, ""), (1, "same")), rollout((1, ""), (1, "same"))]
    found = per_token("gigpo", [1.0, 0.0, 0.0], "ggh", turns, gamma=1.0)
    assert found == [near([1.0, 1.0]), near([-1.0, -1.0]), near([0.0, 0.0])]


def test_a_fatal_rollout_is_neither_blamed_nor_taught_from_its_first_failure_on() -> None:
    fatal = rollout(1, 2, 1, 1, 1, failed=(1, 2, 3))
    good, bad = rollout(2), rollout(2, answered=False)
    # Rewards 1, 0, 0: GRPO without deviation gives 2/3, -1/3, -1/3.
    found = per_token("fatal_aware", [1.0, 0.0, 0.0], "aaa", [fatal, bad, good], divide_by_std=False)
    assert found == [near([2 / 3, 0, 0, 0, 0, 0]), near([0, 0]), near([-1 / 3, -1 / 3])]
    found = per_token("fatal_aware", [0.0, 1.0, 0.0], "aaa", [fatal, bad, good], divide_by_std=False)
    assert found == [near([0] * 6), near([2 / 3, 2 / 3]), near([-1 / 3, -1 / 3])]
    two = rollout(1, 2, 1, 1, 2, failed=(1, 2, 4))
    assert per_token("fatal_aware", [0.0, 1.0], "aa", [two, good], divide_by_std=False)[0] == near([-0.5] * 7)


# ----------------------------------------------------------------------------------------------------------- policy losses
def test_losses_of_the_ratios_half_one_and_a_half() -> None:
    # -.5 * 1; 1 * 1; -min(1.5, 1.2) * 2.
    clip = policy_loss("clip", NOW, OLD, A, ONE)
    assert clip.tolist() == near([-0.5, 1.0, -2.4]) and clip.mean().item() == near(-0.6333)
    # -clip(r) * A * logp with r clipped to .8, 1, 1.2.
    cispo = policy_loss("cispo", NOW, OLD, A, ONE, low=0.2, high=0.2)
    assert cispo.tolist() == near([1.35452, -1.0, 1.426872]) and cispo.mean().item() == near(0.593797)
    # The third root of .75 is .9086.
    gspo = policy_loss("gspo", NOW, OLD, A, ONE, low=0.2, high=0.2)
    assert gspo.tolist() == near([-0.9086, 0.9086, -1.8171]) and gspo.mean().item() == near(-0.6057)
    # Times min(exp(old - engine), .8): .60653, .8, .8.
    tis = correction("tis", OLD, ENGINE, ONE, cap=0.8)
    assert (clip * tis).tolist() == near([-0.3033, 0.8, -1.92]) and (clip * tis).mean().item() == near(-0.4744)
    # The response's: exp(-.5 + .5 - .2) = .8187, capped too.
    whole = gspo * correction("tis", OLD, ENGINE, ONE, cap=0.8, level="sequence")
    assert whole.tolist() == near([-0.7268, 0.7268, -1.4537]) and whole.mean().item() == near(-0.4846)
    # Untruncated weights .60653, 1.64872, .81873 on CISPO.
    assert (cispo * correction("tis", OLD, ENGINE, ONE, cap=100)).mean().item() == near(0.113687)
    # IcePop: exp(2.5) is out of .5 to 5.
    ice = correction("icepop", OLD, torch.tensor([-0.5, -3.5, -0.8]), ONE)
    assert ice.tolist() == near([0.60653, 0.0, 0.81873])
    on_policy = policy_loss("clip", OLD, OLD, A, ONE) * ice  # -1, 1, -2
    assert on_policy.mean().item() == near(-0.747997)


def test_dual_clip() -> None:
    # r 2, 2, .5, A 2, -2, 2, c 1.5: -min(4, 2.4); min(4, 3); -min(1, 1.6).
    now = torch.tensor([2.0, 2.0, 0.5]).log()
    assert policy_loss("clip", now, torch.zeros(3), torch.tensor([2.0, -2.0, 2.0]), ONE, dual=1.5).tolist() == near(
        [-2.4, 3, -1]
    )
    # r .5, 1, 10, A 1, -1, -4, c 3: 12 is -c * A; the mean 12.5 / 3.
    now = torch.tensor([0.5, 1.0, 10.0]).log()
    loss = policy_loss("clip", now, torch.zeros(3), torch.tensor([1.0, -1.0, -4.0]), ONE, dual=3.0)
    assert loss.tolist() == near([-0.5, 1.0, 12.0]) and loss.mean().item() == near(4.1667)


@pytest.mark.parametrize(
    ("ratios", "low", "high", "losses", "gradient"),
    [
        # Weights 1, 1.14, 1.28, .8, then 1, 3, 5, .4.
        ([1, 1.14, 1.56, 0.4], 0.2, 0.28, [0.7, -0.684, 1.024, -1.68], [-1, 0.57, -2.56, 0.8]),
        ([1, 3, 9, 0.4], 1.0, 4.0, [0.7, -1.8, 4.0, -0.84], [-1, 1.5, -10, 0.4]),
    ],
)
def test_cispo(ratios: list[float], low: float, high: float, losses: list[float], gradient: list[float]) -> None:
    a, lp = torch.tensor([1, -0.5, 2, -1]), torch.tensor([-0.7, -1.2, -0.4, -2.1], requires_grad=True)
    old = lp.detach() - torch.tensor(ratios).log()
    loss = policy_loss("cispo", lp, old, a, torch.tensor([0, 4]), low=low, high=high)
    loss.sum().backward()
    assert loss.tolist() == near(losses)
    assert lp.grad is not None and lp.grad.tolist() == near(gradient)


def test_sapo() -> None:
    # r exp(-.5), exp(.2), exp(-.1); 4 sigmoid(r - 1), 2 sigmoid(2 (r - 1)), 4 sigmoid(r - 1).
    now, a = torch.tensor([-1.5, -0.8, -1.1]), torch.tensor([1.0, -1.0, 0.5])
    loss = policy_loss("sapo", now, OLD, a, ONE, tau_pos=1.0, tau_neg=2.0)
    assert loss.tolist() == near([-1.61153, 1.217855, -0.952455]) and loss.sum().item() == near(-1.34613)


def test_gmpo() -> None:
    # Log-ratios -.6931, 0, .4055: for A > 0 the last is clipped to .4, mean -.0977; for A < 0 the first to -.4, mean .0018.
    for sign, ratio in ((1.0, 0.906907), (-1.0, 1.001823)):
        loss = policy_loss("gmpo", NOW, OLD, torch.full((3,), sign), ONE)
        assert loss.tolist() == near([-sign * ratio] * 3)
    assert "token" in part(policy_losses.REGISTRY, "gmpo", {}).refuses  # type: ignore[attr-defined]


def test_covariances_of_the_whole_update_choose_the_tokens() -> None:
    # A -1, 0, 1, 0 (mean 0); log-probs -4, -2, 0, -2 (mean -2): covariances 2, 0, 2, 0.
    a, lp = torch.tensor([-1.0, 0.0, 1.0, 0.0]), torch.tensor([-4.0, -2.0, 0.0, -2.0])
    kl: Any = part(policy_losses.REGISTRY, "kl_cov", {"share": 0.5})
    assert kl.select(lp, lp, a).tolist() == [True, False, True, False]
    cov: Any = part(policy_losses.REGISTRY, "clip_cov", {"share": 0.5})
    assert cov.select(lp, lp, a).tolist() == [True, False, True, False]
    # One of both by lot, the same each time; never one that the clip holds already (the third: A > 0 and r > 1.2).
    few: Any = part(policy_losses.REGISTRY, "clip_cov", {"share": 0.25, "seed": 3})
    assert few.select(lp, lp, a).sum() == 1 and torch.equal(few.select(lp, lp, a), few.select(lp, lp, a))
    assert few.select(lp, lp - torch.tensor([0.0, 0.0, 1.0, 0.0]), a).tolist() == [True, False, False, False]
    # Beyond cov_high nothing is drawn; at least one token is where any may be.
    assert not cov.select(lp * 9, lp * 9, a * 9).any()
    assert part(policy_losses.REGISTRY, "clip_cov", {}).select(lp, lp, a).sum() == 1  # type: ignore[attr-defined]
    # Held tokens cost nothing; paying ones |log r| more: r = e**.5.
    bounds = torch.tensor([0, 4])
    assert policy_loss("clip_cov", lp, lp, a, bounds, share=0.5).tolist() == near([0, 0, 0, 0])
    paid = policy_loss("kl_cov", lp + 0.5, lp, a, bounds, share=0.5, coef=2.0)
    assert paid.tolist() == near([math.exp(0.5) + 1, 0, -math.exp(0.5) + 1, 0])


def test_the_kl_coefficient_follows_the_kl() -> None:
    # 1 + .1 * (1.1 - 1) = 1.01; errors beyond .2 count as .2.
    assert adapted(0.5, kl=1.1, target=1.0, gain=0.1) == pytest.approx(0.505)
    assert adapted(0.5, kl=9.0, target=1.0, gain=0.1) == pytest.approx(0.51)
    assert adapted(0.5, kl=0.0, target=1.0, gain=0.1) == pytest.approx(0.49)


# The formulas of the papers, one token or response at a time, in float64. s: settings; r, a, lp: of one response.
def _clip(r: Tensor, a: Tensor, lp: Tensor) -> Tensor:
    return torch.stack([-torch.min(x * y, x.clamp(0.8, 1.2) * y) for x, y in zip(r, a, strict=True)])


def _gspo(r: Tensor, a: Tensor, lp: Tensor) -> Tensor:
    s = r.log().mean().exp().detach() * lp.exp() / lp.exp().detach()
    return torch.stack([-torch.min(x * y, x.clamp(0.8, 1.2) * y) for x, y in zip(s, a, strict=True)])


def _cispo(r: Tensor, a: Tensor, lp: Tensor) -> Tensor:
    return torch.stack([-x.detach().clamp(0.8, 1.2) * y * z for x, y, z in zip(r, a, lp, strict=True)])


def _sapo(r: Tensor, a: Tensor, lp: Tensor) -> Tensor:
    tau = [1.0 if y > 0 else 1.05 for y in a]
    return torch.stack([-y * 4 / t / (1 + torch.exp(-t * (x - 1))) for x, y, t in zip(r, a, tau, strict=True)])


def _gmpo(r: Tensor, a: Tensor, lp: Tensor) -> Tensor:
    logs = [
        x.log().clamp(max=0.4) if y > 0 else x.log().clamp(min=-0.4) if y < 0 else x.log() for x, y in zip(r, a, strict=True)
    ]
    return -a * torch.stack(logs).mean().exp()


FORMULAS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], dict[str, float]]] = {
    "clip": (_clip, {}),
    "gspo": (_gspo, {"low": 0.2, "high": 0.2}),
    "cispo": (_cispo, {"low": 0.2, "high": 0.2}),
    "sapo": (_sapo, {}),
    "gmpo": (_gmpo, {}),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradient_are_the_written_formulas(name: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    sizes = [3, 1, 6]
    formula, options = FORMULAS[name]
    old = -torch.rand(10, generator=g, dtype=torch.float64) * 3
    lp = (old + torch.randn(10, generator=g, dtype=torch.float64) * 0.4).requires_grad_()
    a, scale = torch.randn(10, generator=g, dtype=torch.float64), torch.rand(10, generator=g, dtype=torch.float64)
    parts = [x.split(sizes) for x in (lp, old, a)]
    wanted = torch.cat([formula((x - o).exp(), y, x) for x, o, y in zip(*parts, strict=True)])
    (grad,) = torch.autograd.grad((wanted * scale).sum(), lp)
    cu = torch.tensor([0, *sizes]).cumsum(0)
    mine = lp.detach().float().requires_grad_()
    found = policy_loss(name, mine, old.float(), a.float(), cu, **options)
    (found * scale.float()).sum().backward()
    assert found.tolist() == near(wanted.tolist()) and mine.grad is not None
    assert mine.grad.tolist() == near(grad.tolist())


# -------------------------------------------------------------------------------------------------------------- corrections
def weights_of(name: str, ratios: list[float], bounds: list[int] | None = None, **options: Any) -> tuple[list[float], float]:
    """Of ratios trainer : engine; the weights, and the share that is clipped on the raw ratios."""
    engine = -torch.tensor(ratios).log()
    arguments = (torch.zeros(len(ratios)), engine, torch.tensor(bounds or [0, len(ratios)]))
    made: Any = part(corrections.REGISTRY, name, options)
    assert torch.equal(made.weights(*arguments), correction(name, *arguments, **options))
    return made.weights(*arguments).tolist(), made.clipped(*arguments).float().mean().item()


@pytest.mark.parametrize(
    ("name", "ratios", "bounds", "options", "weights", "clipped"),
    [
        ("tis", [0.1, 1, 3], None, {"cap": 2.0}, [0.1, 1, 2], 1 / 3),
        ("tis", [0.1, 1, 3], None, {"cap": 2.0, "floor": 0.5}, [0.5, 1, 2], 2 / 3),
        # exp(.5 - .5 + 1) = e; exp(3) is above the cap of 5, in a response of its own.
        ("tis", [math.exp(0.5), math.exp(-0.5), math.e], None, {"level": "sequence", "cap": 5.0}, [math.e] * 3, 0),
        ("tis", [math.exp(1), math.exp(2), 1], [0, 2, 3], {"level": "sequence", "cap": 5.0}, [5, 5, 1], 2 / 3),
        ("icepop", [0.4, 0.8, 6], None, {"low": 0.5, "high": 5.0}, [0, 0.8, 0], 2 / 3),
        ("mis", [0.4, 0.8, 6], None, {"low": 0.5, "high": 5.0}, [0, 0.8, 0], 2 / 3),
        # 3.5 is above the bound 2, told from the raw product.
        ("mis", [3.5, 1, 0.9, 1], [0, 2, 4], {"level": "sequence"}, [0, 0, 0.9, 0.9], 1 / 2),
        ("mis", [math.exp(0.0005)] * 3, None, {"level": "sequence", "low": 0.999, "high": 1.002}, [1.0015] * 3, 0),
        ("mis", [math.exp(0.0005)] * 9, None, {"level": "geometric", "low": 0.999, "high": 1.002}, [1.0005] * 9, 0),
        # A token of 1e-5 takes its response with it, and nothing of the other.
        ("mis", [1, 1e-5, 1, 1], [0, 3, 4], {"low": 0.0, "veto": 1e-4}, [0, 0, 0, 1], 3 / 4),
    ],
)
def test_corrections(
    name: str, ratios: list[float], bounds: list[int] | None, options: dict[str, Any], weights: list[float], clipped: float
) -> None:
    found, share = weights_of(name, ratios, bounds, **options)
    assert found == near(weights) and share == near(clipped)


def test_opsm_leaves_out_bad_responses_that_the_policy_has_left() -> None:
    # Responses of two tokens. Mean engine - policy: .2, .2, -.2; advantages -, +, -. Only the first is bad and left.
    engine = torch.tensor([-1.0] * 6)
    now = torch.tensor([-1.3, -1.1, -1.3, -1.1, -0.7, -0.9])
    a, cu = torch.tensor([-1.0, -1, 1, 1, -1, -1]), torch.tensor([0, 2, 4, 6])
    found = correction("opsm", engine, engine, cu, advantages=a, logprobs=now, delta=0.1)
    assert found.tolist() == [0, 0, 1, 1, 1, 1]
    assert correction("opsm", engine, engine, cu, advantages=a, logprobs=now, delta=0.3).tolist() == [1] * 6
    # The trainer's old log-probs where the policy's are not given.
    assert correction("opsm", now, engine, cu, advantages=a, delta=0.1).tolist() == [0, 0, 1, 1, 1, 1]
