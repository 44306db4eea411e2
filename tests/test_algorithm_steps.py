"""A whole step of every recipe against an implementation that shares nothing with ours: rewards in, gradient of a small
policy's weights out, in float64, a response at a time; and the same however rollouts are ordered and split."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_mmsr1.algorithm import recipes
from megatron_mmsr1.algorithm.composition import SUMS, Scored, compose, summary
from megatron_mmsr1.algorithm.parts import Rollout, RolloutTurn, Totals
from megatron_mmsr1.config import parse
from megatron_mmsr1.run.facts import facts
from megatron_mmsr1.trajectory import Status, ToolCall, ToolStatus, Trajectory

KL, ENTROPY = 0.07, 0.03
WIDTH, VOCABULARY = 5, 7


@dataclass(frozen=True)
class Response:
    """One rollout: what its n sampled tokens are told from, which they are, and who says how likely they were."""

    number: int
    group: str
    reward: float
    features: Tensor  # float64 [n, WIDTH]
    targets: Tensor  # int64 [n]
    old: Tensor
    engine: Tensor
    ref: Tensor


def scores(weights: Tensor, x: Response) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [n] of a linear policy."""
    every = torch.log_softmax(x.features @ weights, -1)
    return every.gather(1, x.targets[:, None]).squeeze(1), -(every.exp() * every).sum(-1)


def world(seed: int = 0) -> tuple[Tensor, list[Response]]:
    """Weights, and responses of three groups: rewards that differ, that are equal, and a good one among bad."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    weights = draw(WIDTH, VOCABULARY)
    before, reference = weights + 0.15 * draw(WIDTH, VOCABULARY), weights + 0.4 * draw(WIDTH, VOCABULARY)
    made: list[Response] = []
    for group, rewards in {"a": [1.0, 0.1, 0.7], "b": [0.5, 0.5], "c": [1.0, 0.0, 0.0, 0.0]}.items():
        for reward in rewards:
            n = int(torch.randint(1, 7, (1,), generator=g))
            x = Response(
                len(made), group, reward, draw(n, WIDTH), torch.randint(0, VOCABULARY, (n,), generator=g), *[torch.zeros(n)] * 3
            )
            old, ref = scores(before, x)[0], scores(reference, x)[0]
            made.append(replace(x, old=old, ref=ref, engine=old + 0.3 * draw(n)))
    return weights, made


# ------------------------------------------------------------------------------------------------------------------- theirs
def grpo(xs: Sequence[Response]) -> list[float]:
    groups = {x.group: [y.reward for y in xs if y.group == x.group] for x in xs}
    return [
        0.0
        if len(set(groups[x.group])) == 1
        else (x.reward - statistics.mean(groups[x.group])) / statistics.stdev(groups[x.group])
        for x in xs
    ]


def dr_grpo(xs: Sequence[Response]) -> list[float]:
    return [x.reward - statistics.mean(y.reward for y in xs if y.group == x.group) for x in xs]


def rloo(xs: Sequence[Response]) -> list[float]:
    return [x.reward - statistics.mean(y.reward for y in xs if y.group == x.group and y is not x) for x in xs]


def reinforce_pp_baseline(xs: Sequence[Response]) -> list[float]:
    centred = dr_grpo(xs)
    tokens = [a for a, x in zip(centred, xs, strict=True) for _ in x.targets]
    mean, deviation = statistics.mean(tokens), statistics.stdev(tokens)
    return [(a - mean) / deviation for a in centred]


def clip(high: float, lp: Tensor, old: Tensor, a: float, chosen: list[bool]) -> Tensor:
    r = (lp - old).exp()
    return -torch.minimum(r * a, r.clamp(0.8, 1 + high) * a)


def gspo(lp: Tensor, old: Tensor, a: float, chosen: list[bool]) -> Tensor:
    s = (lp - old).mean().exp()  # the paper's equation 5; of one advantage a response its gradient is that of the token form
    return -torch.minimum(s * a, s.clamp(1 - 3e-4, 1 + 4e-4) * a).expand(len(lp))


def gspo_token(lp: Tensor, old: Tensor, a: float, chosen: list[bool]) -> Tensor:
    s = (lp - old).mean().exp().detach() * (lp - lp.detach()).exp()  # equation 13: for weights that differ by token
    return -torch.minimum(s * a, s.clamp(1 - 3e-4, 1 + 4e-4) * a)


def cispo(lp: Tensor, old: Tensor, a: float, chosen: list[bool]) -> Tensor:
    return -(lp - old).exp().clamp(0, 5).detach() * a * lp


def sapo(lp: Tensor, old: Tensor, a: float, chosen: list[bool]) -> Tensor:
    tau = 1.0 if a > 0 else 1.05
    return -a * (4 / tau) / (1 + torch.exp(-tau * ((lp - old).exp() - 1)))


def gmpo(lp: Tensor, old: Tensor, a: float, chosen: list[bool]) -> Tensor:
    d = lp - old
    kept = torch.minimum(d, torch.tensor(0.4)) if a > 0 else torch.maximum(d, torch.tensor(-0.4)) if a < 0 else d
    return (-a * kept.mean().exp()).expand(len(lp))


def clip_cov(lp: Tensor, old: Tensor, a: float, chosen: list[bool]) -> Tensor:
    return clip(0.2, lp, old, a, chosen) * torch.tensor([0.0 if c else 1.0 for c in chosen])


def kl_cov(lp: Tensor, old: Tensor, a: float, chosen: list[bool]) -> Tensor:
    return -(lp - old).exp() * a + (lp - old).abs() * torch.tensor([1.0 if c else 0.0 for c in chosen])


def k3(lp: Tensor, ref: Tensor) -> Tensor:
    return (ref - lp).exp() - 1 - (ref - lp)


def k2(lp: Tensor, ref: Tensor) -> Tensor:
    return (lp - ref) ** 2 / 2


Loss = Callable[[Tensor, Tensor, float, list[bool]], Tensor]
PPO: Loss = lambda *x: clip(0.2, *x)  # noqa: E731 (a row of the table below)
DAPO: Loss = lambda *x: clip(0.28, *x)  # noqa: E731

# What each recipe is by its paper: advantages, loss of a response's tokens, KL, average.
PAPERS: dict[str, tuple[Any, Loss, Any, str]] = {
    "grpo": (grpo, PPO, k3, "token"),
    "dapo": (grpo, DAPO, k3, "token"),
    "dr_grpo": (dr_grpo, PPO, k3, "constant"),
    "gspo": (grpo, gspo, k3, "sequence"),
    "cispo": (grpo, cispo, k3, "token"),
    "sapo": (grpo, sapo, k3, "sequence"),
    "gmpo": (grpo, gmpo, k3, "sequence"),
    "clip_cov": (grpo, clip_cov, k3, "token"),
    "kl_cov": (grpo, kl_cov, k3, "token"),
    "rloo": (rloo, PPO, k3, "token"),
    "reinforce_pp_baseline": (reinforce_pp_baseline, PPO, k2, "token"),
}


def highest(weights: Tensor, xs: Sequence[Response], advantages: list[float]) -> list[list[bool]]:
    """The one token (2e-4 of a few is none, and at least one counts) that both Cov losses choose here."""
    lp = [float(v) for x in xs for v in scores(weights, x)[0]]
    a = [v for v, x in zip(advantages, xs, strict=True) for _ in x.targets]
    cov = [(p - statistics.mean(lp)) * (q - statistics.mean(a)) for p, q in zip(lp, a, strict=True)]
    best = iter([c == max(cov) for c in cov])
    return [[next(best) for _ in x.targets] for x in xs]


def theirs(name: str, weights: Tensor, xs: Sequence[Response], correct: bool) -> tuple[Tensor, Tensor]:
    """(loss, its gradient) as the paper has it, with `correct` times min(pi_old / pi_engine, 2)."""
    w = weights.clone().requires_grad_()
    estimate, loss, kl, average = PAPERS[name]
    loss = gspo_token if correct and loss is gspo else loss
    advantages = estimate(xs)
    chosen = highest(weights, xs, advantages)
    total, count = torch.zeros((), dtype=torch.float64), sum(len(x.targets) for x in xs)
    for x, a, c in zip(xs, advantages, chosen, strict=True):
        lp, entropy = scores(w, x)
        tokens = loss(lp, x.old, a, c)
        if correct:
            tokens = tokens * (x.old - x.engine).exp().clamp(max=2)
        tokens = tokens + KL * kl(lp, x.ref) - ENTROPY * entropy
        divisor = {"token": count, "sequence": len(xs) * len(lp), "constant": len(xs) * 1024}[average]
        total = total + tokens.sum() / divisor
    return total.detach(), torch.autograd.grad(total, w)[0]


# --------------------------------------------------------------------------------------------------------------------- ours
def ours(
    name: str, weights: Tensor, xs: Sequence[Response], cuts: Sequence[int] = (), **algorithm: Any
) -> tuple[float, Tensor, dict[str, float]]:
    """(loss, gradient, metrics), with a micro-batch between each two of `cuts`."""
    raw = {"name": name, "kl_coef": KL, "entropy_coef": ENTROPY} | algorithm
    made = compose(parse({"model": {"path": "m"}, "algorithm": raw}).algorithm)
    w = weights.float().requires_grad_()
    rollouts = [Rollout((RolloutTurn(len(x.targets), "", failed=False),)) for x in xs]
    kept, values = made.select([x.reward for x in xs], [x.group for x in xs], rollouts)
    assert kept == list(range(len(xs)))  # the KL keeps the group without spread
    tokens = [v.float().expand(len(x.targets)) for v, x in zip(values, xs, strict=True)]
    selected = [torch.zeros(len(x.targets), dtype=torch.bool) for x in xs]
    if "selected" in made.needs:
        order = sorted(range(len(xs)), key=lambda i: xs[i].number)  # one for every order and split, as Objective.choose has
        with torch.no_grad():
            lp = torch.cat([scores(w.double(), xs[i])[0] for i in order])
        old, a = (torch.cat([part[i] for i in order]).float() for part in ([x.old for x in xs], tokens))
        flat = made.policy_loss.select(lp.float(), old, a)  # type: ignore[attr-defined]
        parts = dict(zip(order, flat.split([len(xs[i].targets) for i in order]), strict=True))
        selected = [parts[i] for i in range(len(xs))]
    count = float(sum(len(x.targets) for x in xs))
    totals = Totals(tokens=count, weight=count, sequences=float(len(xs)))
    total, sums = torch.zeros(()), torch.zeros(len(SUMS), dtype=torch.float64)
    for a, b in itertools.pairwise([0, *cuts, len(xs)]):
        batch = [(replace(x, features=x.features.float()), i) for i, x in enumerate(xs[a:b], a)]
        both = [scores(w, x) for x, _ in batch]

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).float() if parts else torch.zeros(0)

        scored = Scored(
            logprobs=joined([lp for lp, _ in both]),
            entropy=joined([e for _, e in both]),
            weights=torch.ones(sum(len(x.targets) for x, _ in batch)),
            advantages=joined([tokens[i] for _, i in batch]),
            engine_logprobs=joined([x.engine for x, _ in batch]),
            old_logprobs=joined([x.old for x, _ in batch]),
            ref_logprobs=joined([x.ref for x, _ in batch]),
            cu_seqlens=torch.tensor([0, *(len(x.targets) for x, _ in batch)]).cumsum(0),
            selected=joined([selected[i] for _, i in batch]).bool(),
        )
        value, report = made.loss(scored, totals)
        total, sums = total + value, sums + report[: len(SUMS)]
    (gradient,) = torch.autograd.grad(total, w)
    return total.item(), gradient, summary(dict(zip(SUMS, sums.tolist(), strict=True)))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-6)


def test_every_recipe_with_rewards_is_here() -> None:
    assert set(PAPERS) == {n for n in recipes.REGISTRY.names() if not recipes.REGISTRY.get(n).supervised}


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("name", PAPERS)
def test_loss_and_gradient_are_the_papers(name: str, correct: bool) -> None:
    for seed in range(3):
        weights, xs = world(seed)
        extra: dict[str, Any] = {"correction": "tis"} if correct else {}
        if name == "clip_cov":  # so that the one of the highest covariance is the only candidate
            low = sorted(covariance_list(weights, xs))[-2]
            extra["policy_loss"] = {"cov_low": low + 1e-6, "cov_high": 1e9}
            chosen = highest(weights, xs, grpo(xs))
            if held(weights, xs, chosen):
                continue  # the clip holds it already, which takes it out of the candidates
        value, gradient, _ = ours(name, weights, xs, **extra)
        wanted, its_gradient = theirs(name, weights, xs, correct)
        assert value == pytest.approx(float(wanted), rel=1e-4, abs=1e-6)
        close(gradient, its_gradient)


def covariance_list(weights: Tensor, xs: Sequence[Response]) -> list[float]:
    lp = torch.cat([scores(weights, x)[0] for x in xs])
    a = torch.tensor([v for v, x in zip(grpo(xs), xs, strict=True) for _ in x.targets])
    return ((lp - lp.mean()) * (a - a.mean())).tolist()


def held(weights: Tensor, xs: Sequence[Response], chosen: list[list[bool]]) -> bool:
    for x, a, marks in zip(xs, grpo(xs), chosen, strict=True):
        r = (scores(weights, x)[0] - x.old).exp()
        if any(m and ((a > 0 and v > 1.2) or (a < 0 and v < 0.8)) for m, v in zip(marks, r, strict=True)):
            return True
    return False


@pytest.mark.parametrize("name", PAPERS)
def test_neither_micro_batches_nor_the_order_of_rollouts_change_a_step(name: str) -> None:
    weights, xs = world()
    extra: dict[str, Any] = {"correction": {"name": "mis", "level": "geometric"}, "kl_in": "loss"}
    value, gradient, told = ours(name, weights, xs, **extra)
    for order, cuts in ((range(9), (1, 2, 2, 5)), (reversed(range(9)), (4,)), ([8, 0, 3, 5, 1, 7, 2, 6, 4], range(1, 9))):
        again, moved, also = ours(name, weights, [xs[i] for i in order], list(cuts), **extra)
        assert again == pytest.approx(value, rel=1e-4, abs=1e-6)
        close(moved, gradient)
        assert also == pytest.approx(told, rel=1e-3, abs=1e-5)


def test_a_kl_in_the_reward_is_what_is_left_of_it_at_each_token() -> None:
    """Policy gradient with the advantage A - coef * (sum of the log-ratios from this token on); on policy, so that r = 1."""
    weights, xs = world()
    xs = [replace(x, old=scores(weights, x)[0]) for x in xs]
    _, gradient, _ = ours("grpo", weights, xs, kl_in="reward", kl="k1", entropy_coef=0.0)
    w = weights.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for x, a in zip(xs, grpo(xs), strict=True):
        lp, _ = scores(w, x)
        for t in range(len(lp)):
            left = sum(float(x.old[j] - x.ref[j]) for j in range(t, len(lp)))
            total = total - (a - KL * left) * lp[t]
    close(gradient, torch.autograd.grad(total / sum(len(x.targets) for x in xs), w)[0])


def test_distillation_adds_the_teachers_log_ratio_to_each_advantage() -> None:
    weights, xs = world()
    xs = [replace(x, old=scores(weights, x)[0], reward=0.0) for x in xs]  # nothing but the teacher
    _, gradient, _ = ours("grpo", weights, xs, kl_coef=0.0, entropy_coef=0.0, distill_coef=0.5)
    w = weights.clone().requires_grad_()
    total = sum((0.5 * (x.old - x.ref) * scores(w, x)[0]).sum() for x in xs) / sum(len(x.targets) for x in xs)
    assert isinstance(total, Tensor)
    close(gradient, torch.autograd.grad(total, w)[0])


def test_metrics_of_the_engines_gap() -> None:
    weights, xs = world()
    _, _, told = ours("grpo", weights, xs, correction={"name": "icepop", "low": 0.9, "high": 1.3})
    gap = torch.cat([x.old - x.engine for x in xs])
    raw = gap.exp()
    out = (raw < 0.9) | (raw > 1.3)
    kept = torch.where(out, 0.0, raw)
    assert told["engine_k1"] == pytest.approx(-gap.mean().item(), abs=1e-6)
    assert told["engine_k3"] == pytest.approx((raw - 1 - gap).mean().item(), abs=1e-6)
    assert told["correction_clipped"] == pytest.approx(out.double().mean().item())
    assert told["correction_mean"] == pytest.approx(kept.mean().item(), abs=1e-6)
    assert told["correction_ess"] == pytest.approx((kept.mean() ** 2 / (kept**2).mean()).item(), abs=1e-6)
    # Ratios .4, .8, 6 within .5 to 5 leave one weight of three: an effective share of 1/3.
    assert summary(dict.fromkeys(SUMS, 0.0) | {"correction_mean": 0.8 / 3, "correction_square": 0.64 / 3})[
        "correction_ess"
    ] == pytest.approx(1 / 3)


def test_what_an_estimator_is_told_of_a_trajectory() -> None:
    """Keys are of what the tools said, in outlines too; a refused call is a failed one."""

    def made(said: str, status: ToolStatus) -> Trajectory:
        t = Trajectory("p", "g", 0, "q", ["a"], status=Status.ANSWERED)
        t.append("prompt", [1, 2], "")
        t.append("assistant", [3, 4, 5], "", logprobs=[-1.0] * 3, action="text_search")
        t.append("tool", [6], said, tool=ToolCall("text", "x", status))
        t.append("assistant", [7], "", logprobs=[-1.0], action="answer")
        return t

    found = [
        facts(made(*x).outline()) for x in (("one", ToolStatus.OK), ("one", ToolStatus.REFUSED), ("two", ToolStatus.EMPTY))
    ]
    assert [f.tokens for f in found] == [4, 4, 4] and all(f.answered for f in found)
    assert [[t.tokens for t in f.turns] for f in found] == [[3, 1]] * 3
    keys = [f.turns[1].key for f in found]
    assert keys[0] == keys[1] != keys[2] and all(keys) and {f.turns[0].key for f in found} == {""}
    assert [f.turns[0].failed for f in found] == [False, True, False]
    again = made("one", ToolStatus.OK).outline().outline()
    assert facts(again) == found[0]
    assert math.isclose(sum(t.tokens for t in found[0].turns), made("one", ToolStatus.OK).sampled_tokens)
