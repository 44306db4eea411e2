"""The time of a step's rollouts that `mmsr1 estimate` tells: a roofline, worked out by hand for one small model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1 import config
from megatron_mmsr1.cli import main
from megatron_mmsr1.estimate import dimensions, engine
from megatron_mmsr1.estimate.batch import Batch
from megatron_mmsr1.estimate.dimensions import Dimensions
from megatron_mmsr1.estimate.report import files_of
from megatron_mmsr1.estimate.rollout import conversations, rollout, running
from megatron_mmsr1.estimate.step import Rates

ROOT = Path(__file__).parent.parent
SHAPE = ROOT / "configs" / "shapes" / "Qwen2-VL-2B-Instruct.json"
RATES = Rates(300e12, 3e12, 400e9, 50e9)


def cfg(prompts: int = 64, count: int = 1, **engines: Any) -> config.RunConfig:
    return config.parse(
        {
            "model": {"path": "nowhere"},
            "data": {"prompts_per_step": prompts, "group_size": 8},
            "placement": {"engines": {"count": count} | engines},
        }
    )


D = dimensions.of_files(files_of(cfg(), SHAPE))
SMALL = Dimensions(
    layers=2, hidden=8, heads=2, groups=1, head=4, ffn=16, vocabulary=32, tied=False, qkv_bias=False, qk_norm=False
)
LENGTHS = st.builds(Batch, st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 4000), st.just(0))


def test_by_hand() -> None:
    """Two prompts of 30 tokens, 4 rollouts each of which samples 20 and reads 10 of a tool's; a mean length of 60.

    Matrices of a layer: q, k, v 8 x (8 + 8), output 8 x 8, feed-forward 3 x 8 x 16: 128 + 64 + 384 = 576. Prefill: 2 x (60 +
    80) tokens x 2 layers x 576 = 322,560, and pairs 60 x 15 + 80 x 40 = 4,100 at 4 x 8 x 2 each, 262,400: 584,960 operations.
    Decode: 20 rounds of 8 conversations at 40 tokens, of which each reads 1,000 bytes of weights and 8 x 40 x 32 bytes of keys
    and values: 20 x 11,240 bytes.
    """
    c = config.parse({"model": {"path": "nowhere"}, "data": {"prompts_per_step": 2, "group_size": 4}})
    share = engine.Share(1, 1000, 32, None, None)
    found = rollout(c, SMALL, share, Batch(30, 20, 10, 0), Rates(1e6, 1e3, 1.0, 1.0))
    assert found == pytest.approx({"prefill": 0.58496, "decode": 224.8})
    # With arithmetic as slow, 20 rounds of 8 x (2 x (2 x 576 + 32 x 8) + 4 x 40 x 8 x 2) = 43,008 operations last longer.
    slow = rollout(c, SMALL, share, Batch(30, 20, 10, 0), Rates(1e3, 1e3, 1.0, 1.0))
    assert slow["decode"] == pytest.approx(20 * 43.008)


@given(LENGTHS, st.integers(1, 200), st.integers(1, 8))
def test_more_engines_never_take_longer(b: Batch, prompts: int, count: int) -> None:
    one, many = (cfg(prompts, n) for n in (1, count))
    a, z = (rollout(c, D, engine.share(c, D, None), b, RATES) for c in (one, many))
    assert all(z[k] <= a[k] * (1 + 1e-9) for k in a)
    assert conversations(many) * count >= prompts * 8


@given(LENGTHS, st.integers(1, 10**6))
def test_less_room_for_keys_and_values_never_helps(b: Batch, tokens: int) -> None:
    c = cfg()
    free = engine.share(c, D, None)
    tight = dataclasses.replace(free, kv_tokens=tokens)
    assert 1 <= running(tight, b, 512) <= running(free, b, 512) == 512
    assert rollout(c, D, tight, b, RATES)["decode"] >= rollout(c, D, free, b, RATES)["decode"] * (1 - 1e-9)


def test_pictures_cost_a_group_once() -> None:
    pictured = [rollout(cfg(n), D, engine.share(cfg(n), D, None), Batch(), RATES)["pictures"] for n in (8, 16)]
    assert pictured[1] == pytest.approx(2 * pictured[0]) and pictured[0] > 0
    text = dataclasses.replace(D, tower=None)
    assert "pictures" not in rollout(cfg(), text, engine.share(cfg(), text, None), Batch(), RATES)


def test_a_whole_step_is_told_a_prompt_and_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Four GPUs train and four generate, one after the other; what was measured takes the place of what is told."""
    recipe = ["estimate", str(ROOT / "configs" / "qwen2-vl-2b-maths.yaml"), "--config-json", str(SHAPE)]
    assert main([*recipe, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    whole = sum(told["seconds"].values()) + sum(told["rollout"].values())
    assert told["prompts_per_second_and_gpu"] == pytest.approx(128 / whole / 8)
    assert main([*recipe, "--json", "--rollout-s", "100"]) == 0
    given_ = json.loads(capsys.readouterr().out)
    assert given_["prompts_per_second_and_gpu"] == pytest.approx(128 / (sum(told["seconds"].values()) + 100) / 8)
    assert main(recipe) == 0
    said = capsys.readouterr().out
    assert "on 8 GPUs" in said and "prompts a second and GPU" in said and "searches" in said
