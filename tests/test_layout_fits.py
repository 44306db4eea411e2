"""Whether a model divides over the ranks: each size that does not is named with its setting."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_mmsr1.cluster import fits
from megatron_mmsr1.config import MegatronConfig, parse
from megatron_mmsr1.errors import UsageError

DENSE = {"text_config": {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 64, "num_hidden_layers": 6}}
MIXTURE = {"text_config": DENSE["text_config"] | {"num_experts": 6, "moe_intermediate_size": 12, "hidden_size": 16}}


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        (DENSE, {"tensor_parallel": 8}, "tensor_parallel=8: the model's 4 key-value heads"),
        (DENSE, {"expert_parallel": 2}, "expert_parallel=2: this model has no experts"),
        (DENSE, {"expert_tensor_parallel": 2}, "expert_tensor_parallel=2: this model has no experts"),
        (MIXTURE, {"expert_parallel": 4}, "expert_parallel=4: the model's 6 experts do not divide over 4"),
        (MIXTURE, {"expert_parallel": 2, "expert_tensor_parallel": 8}, "expert_tensor_parallel=8: the model's 12 feed-forward"),
        (MIXTURE, {"tensor_parallel": 2}, "set megatron.sequence_parallel: true"),
    ],
)
def test_what_does_not_divide_is_named(config: dict[str, Any], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fits.check(MegatronConfig(**settings), config)


def test_what_divides_passes() -> None:
    fits.check(MegatronConfig(tensor_parallel=4, pipeline_parallel=3), DENSE)
    fits.check(MegatronConfig(tensor_parallel=2, sequence_parallel=True, expert_parallel=6), MIXTURE)
    # Transformers 5 writes the number of experts under another name.
    renamed = {k.replace("num_experts", "num_local_experts"): v for k, v in MIXTURE["text_config"].items()}
    assert fits.experts_of(renamed) == fits.experts_of(MIXTURE) == 6 and fits.experts_of(DENSE) == 0


def test_experts_need_as_many_ranks_as_they_are_spread_over() -> None:
    raw = {"model": {"path": "x"}, "train": {"ranks": 4}, "data": {"prompts_per_step": 4}}
    with pytest.raises(UsageError, match=r"train.ranks=4 is not a multiple of expert tensor \(1\) x expert \(8\)"):
        parse(raw | {"megatron": {"expert_parallel": 8}})
    assert MegatronConfig(tensor_parallel=2, expert_parallel=2).expert_tensor == 1
    assert MegatronConfig(tensor_parallel=2).expert_tensor == 2
