"""What every part of an algorithm must hold to. Each function takes a made part; its AssertionError is the rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_mmsr1.algorithm.parts import BY_NAME, NEEDS, Rollout, RolloutTurn, Totals

BOUNDS = torch.tensor([0, 3, 4, 9])  # three responses of 3, 1 and 5 tokens


def _tokens(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(9, generator=g) * 4
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + torch.randn(9, generator=g) * 0.2,
        "advantages": torch.randn(9, generator=g),
    }


def check_part(part: Any) -> None:
    """What all five have: settings with a name, and needs."""
    assert "name" in type(part).Settings.model_fields, "its Settings has no name"
    assert part.needs <= NEEDS, f"its needs must be of {sorted(NEEDS)}"


def _by_name(part: Any, logprobs: Tensor) -> dict[str, Tensor]:
    """What the part needs beside its plain arguments: a third of the tokens selected, and a bad response between good ones."""
    n = len(logprobs)
    signs = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    offered = {"selected": torch.arange(n) % 3 == 1, "advantages": signs[:n], "logprobs": logprobs.detach()}
    return {k: v for k, v in offered.items() if k in BY_NAME & part.needs}


def _a_value_a_token(value: Any, like: Tensor, what: str) -> None:
    assert isinstance(value, Tensor) and value.shape == like.shape, f"{what} must give one value a token"
    assert value.dtype == torch.float32, f"{what} must give float32"
    assert bool(torch.isfinite(value).all()), f"{what} gave a value that is not finite"


def check_advantage(part: Any) -> None:
    check_part(part)
    rewards, groups = [1.0, 0.0, 0.5, 0.3, 0.3], ["a", "a", "a", "b", "b"]
    values = part.estimate(rewards, groups)
    _a_value_a_token(values, torch.zeros(5), "estimate")
    order = [4, 2, 0, 3, 1]
    again = part.estimate([rewards[i] for i in order], [groups[i] for i in order])
    assert torch.allclose(again, values[order], atol=1e-6), "the order of rollouts must not matter"
    assert part.estimate([], []).shape == (0,), "an empty batch must give no advantages"
    if not hasattr(part, "per_token"):
        return
    rollouts = [Rollout((RolloutTurn(2, "", failed=False), RolloutTurn(n, f"{n % 2}", failed=n == 3))) for n in (1, 2, 3, 4, 5)]
    tokens = part.per_token(rewards, groups, rollouts)
    assert [len(v) for v in tokens] == [o.tokens for o in rollouts], "per_token must give one value a sampled token"
    shuffled = part.per_token([rewards[i] for i in order], [groups[i] for i in order], [rollouts[i] for i in order])
    for v, i in zip(shuffled, order, strict=True):
        _a_value_a_token(v, torch.zeros(rollouts[i].tokens), "per_token")
        assert torch.allclose(v, tokens[i], atol=1e-6), "the order of rollouts must not matter"
    assert part.per_token([], [], []) == [], "an empty batch must give no advantages"


def check_policy_loss(part: Any) -> None:
    check_part(part)
    x = _tokens(0)
    lp = x["logprobs"].clone().requires_grad_()
    old = x["old_logprobs"].clone().requires_grad_()
    more = _by_name(part, lp)
    value = part.losses(lp, old, x["advantages"], BOUNDS, **more)
    _a_value_a_token(value, lp, "losses")
    value.sum().backward()
    assert lp.grad is not None and bool(torch.isfinite(lp.grad).all()), "losses must be differentiable in logprobs"
    assert old.grad is None, "no gradient may flow to old_logprobs"
    last = {k: v[4:] for k, v in x.items()}
    few = {k: v[4:] for k, v in more.items()}
    alone = part.losses(last["logprobs"], last["old_logprobs"], last["advantages"], torch.tensor([0, 5]), **few)
    assert torch.allclose(alone, value.detach()[4:], atol=1e-6), (
        "a response's losses must not depend on the responses beside it"
    )
    assert torch.equal(part.losses(lp, old, x["advantages"], BOUNDS, **more), value), "the same tokens must cost the same again"
    if hasattr(part, "clipped"):
        cut = part.clipped(lp, old, x["advantages"], BOUNDS, **more)
        assert cut.shape == lp.shape, "clipped must give one value a token"
    if "selected" in part.needs:
        marked = part.select(lp.detach(), old.detach(), x["advantages"])
        assert marked.shape == lp.shape and marked.dtype == torch.bool, "select must give bool, one a token"


def check_correction(part: Any) -> None:
    check_part(part)
    x = _tokens(1)
    old = x["logprobs"].clone().requires_grad_()
    more = _by_name(part, x["logprobs"])
    weights = part.weights(old, x["old_logprobs"], BOUNDS, **more)
    _a_value_a_token(weights, old, "weights")
    assert not weights.requires_grad, "weights must not carry a gradient"
    assert bool((weights >= 0).all()), "a weight must not be negative"
    same = part.weights(x["logprobs"], x["logprobs"], BOUNDS, **more)
    assert torch.allclose(same, torch.ones(9)), "the weight must be 1 where engine and trainer agree"
    never = x["old_logprobs"].clone()
    never[5] = -torch.inf
    _a_value_a_token(part.weights(old, never, BOUNDS, **more), old, "weights of a token that the engine thought impossible")
    if hasattr(part, "clipped"):
        assert part.clipped(old, never, BOUNDS, **more).shape == old.shape, "clipped must give one value a token"


def check_kl(part: Any) -> None:
    check_part(part)
    x = _tokens(2)
    lp, ref = x["logprobs"].clone().requires_grad_(), x["old_logprobs"].clone().requires_grad_()
    value = part.penalty(lp, ref)
    _a_value_a_token(value, lp, "penalty")
    value.sum().backward()
    assert lp.grad is not None and ref.grad is None, "penalty must be differentiable in logprobs alone"
    assert torch.allclose(part.penalty(x["logprobs"], x["logprobs"]), torch.zeros(9)), "the KL to itself must be 0"


def check_average(part: Any) -> None:
    check_part(part)
    weights = torch.ones(9)
    totals = Totals(tokens=9, weight=9, sequences=3)
    shares = part.shares(weights, BOUNDS, totals)
    _a_value_a_token(shares, weights, "shares")
    assert bool((shares >= 0).all()), "a share must not be negative"
    first = part.shares(weights[:3], BOUNDS[:2], totals)
    rest = part.shares(weights[3:], BOUNDS[1:] - 3, totals)
    assert torch.allclose(torch.cat([first, rest]), shares), (
        "shares must not depend on how responses are cut into micro-batches"
    )


CHECKS = {
    "advantages": check_advantage,
    "policy_losses": check_policy_loss,
    "corrections": check_correction,
    "kls": check_kl,
    "averages": check_average,
}
