"""An algorithm put together: which parts run, what they need, what of a batch an update is over, and how it is averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.algorithm.composition import SUMS, Scored, compose
from megatron_mmsr1.algorithm.parts import Totals
from megatron_mmsr1.config import RunConfig, dump, parse
from megatron_mmsr1.errors import UsageError


def config(**algorithm: Any) -> RunConfig:
    return parse({"model": {"path": "m"}, "algorithm": {"kl_coef": 0.0} | algorithm})


def composed(**algorithm: Any) -> Any:
    return compose(config(**algorithm).algorithm)


def scored(logprobs: torch.Tensor, cu_seqlens: list[int], **given: torch.Tensor) -> Scored:
    n = len(logprobs)
    fields = {"advantages": torch.ones(n), "engine_logprobs": logprobs.detach().clone(), "weights": torch.ones(n)} | given
    return Scored(
        logprobs=logprobs,
        entropy=torch.full((n,), 0.5),
        old_logprobs=fields.get("old_logprobs"),
        ref_logprobs=fields.get("ref_logprobs"),
        cu_seqlens=torch.tensor(cu_seqlens),
        selected=fields.get("selected"),
        weights=fields["weights"],
        advantages=fields["advantages"],
        engine_logprobs=fields["engine_logprobs"],
    )


@pytest.mark.parametrize(
    ("chosen", "needs"),
    [
        ({}, {"old"}),
        ({"kl_coef": 0.1}, {"old", "reference"}),
        ({"correction": "tis"}, {"old", "engine"}),
        ({"policy_loss": "nll"}, set()),
        ({"name": "sft", "kl_coef": 0.001}, set()),
        ({"name": "dr_grpo"}, {"old"}),
    ],
)
def test_only_what_a_part_needs_is_computed(chosen: dict[str, Any], needs: set[str]) -> None:
    assert composed(**chosen).needs == needs


def test_a_member_of_advantage_zero_stays_in_its_group() -> None:
    # Group a: rewards 0, 1, 2 have the mean 1: its middle member's advantage is 0 and its tokens count all the same. Group b
    # has no spread, nothing in it moves a weight, and it is left out; with a KL term it stays.
    rewards, groups = [0.0, 1.0, 2.0, 1.0, 1.0], ["a", "a", "a", "b", "b"]
    kept, values = composed().select(rewards, groups)
    assert kept == [0, 1, 2]
    assert [float(v) for v in values] == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    assert composed(kl_coef=0.1).select(rewards, groups)[0] == [0, 1, 2, 3, 4]
    assert composed(entropy_coef=0.1).select(rewards, groups)[0] == [0, 1, 2, 3, 4]
    assert composed(policy_loss="nll").select(rewards, groups)[0] == [0, 1, 2, 3, 4]


def test_the_mean_is_over_the_tokens_of_members_of_advantage_zero_too() -> None:
    # Two tokens of advantage 1 and two of 0: on policy the loss is -(1 + 1 + 0 + 0) / 4.
    x = scored(torch.zeros(4, requires_grad=True), [0, 2, 4], advantages=torch.tensor([1.0, 1.0, 0.0, 0.0]))
    value, report = composed().loss(x, Totals(4, 4, 2))
    assert value.item() == -0.5
    assert dict(zip(SUMS, report.tolist(), strict=False))["entropy"] == 0.5


def test_every_term_stands_where_it_should() -> None:
    """loss = mean(weight * policy loss + kl_coef * KL - entropy_coef * entropy), the correction on the policy loss alone."""
    lp = torch.tensor([-1.0, -2.0], requires_grad=True)
    engine = lp.detach() - torch.tensor([0.5, 5.0])  # weights exp(.5) and the cap
    ref = lp.detach() + torch.tensor([1.0, 0.0])  # k3: e - 2 and 0
    x = scored(lp, [0, 2], advantages=torch.tensor([1.0, -1.0]), engine_logprobs=engine, ref_logprobs=ref)
    algorithm = composed(kl_coef=0.1, entropy_coef=0.2, correction={"name": "tis", "cap": 2.0})
    value, report = algorithm.loss(x, Totals(2, 2, 1))
    wanted = ((-1.648721 + 2.0) + 0.1 * 0.718282 - 0.2 * (0.5 + 0.5)) / 2
    assert value.item() == pytest.approx(wanted, abs=1e-5)
    said = dict(zip(SUMS, report.tolist(), strict=False))
    assert said["loss"] == pytest.approx(wanted, abs=1e-5)
    assert said["correction_mean"] == pytest.approx((1.648721 + 2) / 2, abs=1e-5)
    assert said["logprob_diff_mean"] == pytest.approx(2.75)


lengths = st.lists(st.integers(1, 6), min_size=1, max_size=6)


@given(
    lengths,
    st.sampled_from(["token", "sequence", "constant"]),
    st.sampled_from(["clip", "gspo", "cispo", "sapo", "gmpo", "clip_cov", "kl_cov"]),
    st.sampled_from(["tis", "icepop", "mis", "opsm"]),
    st.sampled_from([{"kl": "k3"}, {"kl": "unbiased"}, {"kl_in": "reward", "kl": "k1"}, {"distill_coef": 0.3}]),
    st.randoms(),
)
def test_micro_batches_add_up_however_they_are_cut(
    sizes: list[int], average: str, loss: str, correction: str, kl: dict[str, Any], random
) -> None:
    average = "sequence" if loss in ("gspo", "gmpo") else average
    algorithm = composed(**{"average": average, "policy_loss": loss, "kl_coef": 0.1, "correction": correction} | kl)
    generator = torch.Generator().manual_seed(random.randrange(2**31))

    def draw() -> list[torch.Tensor]:
        return [torch.randn(n, generator=generator) for n in sizes]

    fields = {k: draw() for k in ("logprobs", "old_logprobs", "engine_logprobs", "ref_logprobs", "advantages")}
    fields["selected"] = [x > 0 for x in draw()]
    totals = Totals(sum(sizes), sum(sizes), len(sizes))

    def run(members: list[int]) -> torch.Tensor:
        flat = {k: torch.cat([v[m] for m in members]) if members else torch.zeros(0) for k, v in fields.items()}
        cu = torch.tensor([0, *(sizes[m] for m in members)]).cumsum(0).tolist()
        return algorithm.loss(scored(flat.pop("logprobs"), cu, **flat), totals)[1][: len(SUMS)]

    cut = random.randrange(len(sizes) + 1)
    everyone = list(range(len(sizes)))
    torch.testing.assert_close(run(everyone[:cut]) + run(everyone[cut:]), run(everyone), rtol=1e-4, atol=1e-5)


def test_short_keys_are_the_parts_own() -> None:
    parts = config(divide_by_std=False, clip_high=0.28).algorithm.parts()
    assert parts["advantage"].model_dump()["divide_by_std"] is False
    assert parts["policy_loss"].model_dump() == {"name": "clip", "low": 0.2, "high": 0.28, "dual": None}
    assert config(policy_loss={"dual": 3}).algorithm.parts()["policy_loss"].model_dump()["dual"] == 3.0


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"name": "grp"}, "algorithm.name=grp: no such recipe; did you mean grpo"),
        ({"policy_loss": "cilp"}, "algorithm.policy_loss.name=cilp: no such policy_loss; did you mean clip"),
        ({"policy_loss": "ppo_clip"}, "algorithm.policy_loss.name=ppo_clip: this policy_loss is called clip now"),
        ({"correction": "truncated"}, "algorithm.correction.name=truncated: this correction is called tis now"),
        ({"policy_loss": "gspo"}, "algorithm.policy_loss=gspo with algorithm.average=token"),
        ({"name": "gmpo", "average": "token"}, "algorithm.policy_loss=gmpo with algorithm.average=token"),
        (
            {"policy_loss": {"name": "gspo", "hihg": 1}},
            "unknown key algorithm.policy_loss.hihg: did you mean high",
        ),
        ({"policy_loss": {"hihg": 1}}, "unknown key algorithm.policy_loss.hihg"),
        ({"policy_loss": "nll", "clip_low": 0.1}, "algorithm.clip_low=0.1: the policy_loss nll has no such setting"),
        ({"name": "dr_grpo", "divide_by_std": True}, "the advantage dr_grpo has no such setting"),
        ({"policy_loss": {"low": 0.3}, "clip_low": 0.1}, "disagree: give one of them"),
        ({"name": "sft", "kl": "k2"}, "algorithm.kl: the recipe sft has no kl"),
        ({"kl_target": 0.1}, "algorithm.kl_target and algorithm.reference_interval are about a KL term"),
        ({"reference_interval": 5, "kl_coef": 0.1, "distill_coef": 1}, "in the place of a teacher"),
    ],
)
def test_mistakes_are_explained_when_the_config_is_read(chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as e:
        config(**chosen)
    assert said in str(e.value)


def test_a_run_keeps_its_parts_in_the_config_that_it_writes() -> None:
    import yaml

    cfg = config(policy_loss={"name": "cispo", "high": 2}, average="sequence", clip_low=0.5)
    again = parse(yaml.safe_load(dump(cfg)))
    assert again.algorithm.parts() == cfg.algorithm.parts()
    assert RunConfig.model_validate_json(cfg.model_dump_json()) == cfg


def test_a_cold_starts_written_config_may_hold_the_keys_of_rollouts() -> None:
    parts = config(name="sft", divide_by_std=True, clip_low=0.2, clip_high=0.2, kl_coef=0.001).algorithm.parts()
    assert {seam: settings.model_dump() for seam, settings in parts.items()} == {
        "policy_loss": {"name": "nll"},
        "average": {"name": "token"},
    }


def test_a_part_of_the_wrong_shape_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from megatron_mmsr1.config.section import Section\n"
        "class Settings(Section):\n    name: str = 'mine'\n"
        "class Loss:\n    Settings = Settings\n    needs = frozenset()\n"
        "    def __init__(self, settings): pass\n"
        "    def losses(self, logprobs, old_logprobs, advantages, cu_seqlens): return logprobs.mean()\n"
    )
    algorithm = composed(policy_loss=f"{file}:Loss")
    with pytest.raises(UsageError, match=r"mine\.py: Loss gave a tensor of shape \(\) for 2 tokens"):
        algorithm.loss(scored(torch.zeros(2), [0, 2]), Totals(2, 2, 1))
