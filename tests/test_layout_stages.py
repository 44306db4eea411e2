"""How many layers each pipeline stage gets, by numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_mmsr1.cluster import fits, stages
from megatron_mmsr1.config import MegatronConfig
from megatron_mmsr1.errors import UsageError

TEXT = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "num_hidden_layers": 9}
# A layer: attention 8 x 4 x 2 x (2 + 1) = 192, feed-forward 3 x 8 x 32 = 768: 960. Output layer: 800 x 8 x 0.12 = 768: 0.8.
# A block of the tower: 4 x 10^2 + 2 x 10 x 30 = 1000, of 2 for each of 4 patches a token, 0.3 of the tokens: 2,400: 2.5 layers.
VISION = {"hidden_size": 10, "intermediate_size": 30, "depth": 2, "spatial_merge_size": 2}
CONFIG: dict[str, Any] = {"text_config": TEXT | {"vocab_size": 800}, "vision_config": VISION}


def split(pp: int, vpp: int = 1, *, first: int = 0, trains_tower: bool = True, **settings: Any) -> list[int]:
    m = MegatronConfig(pipeline_parallel=pp, virtual_pipeline=vpp, **settings)
    return stages.split(m, CONFIG, first=first, trains_tower=trains_tower)


def test_costs_beside_the_layers() -> None:
    assert stages.layer_parameters(CONFIG) == 960 and stages.tower_parameters(CONFIG) == 8000
    assert stages.beside_layers(CONFIG, trains_tower=True) == (pytest.approx(2.5), pytest.approx(0.8))
    assert stages.beside_layers(CONFIG, trains_tower=False)[0] == 0
    mixture = {
        "text_config": TEXT | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "vocab_size": 800}
    }
    assert stages.layer_parameters(mixture) == 192 + 3 * 8 * 32  # two experts of sixteen units
    assert stages.beside_layers({"text_config": {"num_hidden_layers": 4}}, trains_tower=True) == (0.0, 0.0)


def test_stages_cost_alike() -> None:
    assert split(1) == [9]
    assert split(2) == [4, 5]  # 6.5 and 5.8 layers; [3, 6] would be 5.5 and 6.8
    assert split(2, trains_tower=False) == [5, 4]  # 5 and 4.8
    assert split(3) == [2, 4, 3]  # 4.5, 4 and 3.8
    assert split(2, 2, trains_tower=False) == [2, 2, 3, 2]
    assert split(3, first=3)[0] == 3
    for pp in range(1, 5):
        assert sum(split(pp)) == 9


def test_an_explicit_split_is_taken_as_it_is() -> None:
    assert split(2, pipeline_split=[1, 8]) == [1, 8]


@pytest.mark.parametrize(
    ("settings", "first", "says"),
    [
        ({"pipeline_parallel": 2, "pipeline_split": [4, 4]}, 0, r"pipeline_split=\[4, 4\]: the model has 9 layers"),
        ({"pipeline_parallel": 2, "pipeline_split": [9, 0]}, 0, "each chunk needs one"),
        ({"pipeline_parallel": 2, "pipeline_split": [2, 7]}, 3, "give the first chunk 3"),
        ({"pipeline_parallel": 10}, 0, "pipeline_parallel=10: the model's 9 layers are too few for 10 chunks; use fewer"),
        (
            {"pipeline_parallel": 4, "virtual_pipeline": 2},
            3,
            "pipeline_parallel=4 with virtual_pipeline=2: .* the first 3 layers",
        ),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], first: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fits.check(MegatronConfig(**settings), CONFIG, first=first)
