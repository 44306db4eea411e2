"""`megatron.fp8`: what it sets, and where it is refused. That it trains is for the GPU check to say."""

from __future__ import annotations

import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_mmsr1.config import parse
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron import bridge, fp8, platform

# Qwen2.5-VL-3B.
SIZES = {"hidden_size": 2048, "num_attention_heads": 16, "num_query_groups": 2, "kv_channels": 128, "ffn_hidden_size": 11008}
REST = {"num_moe_experts": None, "moe_ffn_hidden_size": None, "tensor_model_parallel_size": 1}
REST |= {"expert_tensor_parallel_size": None}


def model(**changes: Any) -> Any:
    return SimpleNamespace(**SIZES | REST | changes)


def cfg(**megatron: Any) -> Any:
    return parse({"model": {"path": "m"}, "megatron": {"fp8": "current"} | megatron})


@pytest.mark.parametrize(
    ("dtype", "engine", "capability", "words"),
    [
        ("bfloat16", None, (9, 0), ["not installed"]),
        ("bfloat16", "2.1.0", (9, 0), ["2.1.0 has no current scaling"]),
        ("bfloat16", "2.20.2", (8, 0), ["compute capability 8.9"]),
        ("float32", "2.20.2", (9, 0), ["model.dtype=float32"]),
        ("float32", None, (0, 0), ["not installed", "8.9", "model.dtype=float32"]),
        ("bfloat16", "2.2.0+abc", (8, 9), []),
        ("bfloat16", "10.0", (10, 0), []),
    ],
)
def test_what_lacks_is_named(dtype: str, engine: str | None, capability: tuple[int, int], words: list[str]) -> None:
    said = list(fp8.missing(dtype, engine, capability))
    assert len(said) == len(words) and all(w in s for w, s in zip(words, said, strict=True))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, None),
        ({"tensor_model_parallel_size": 2}, None),
        ({"ffn_hidden_size": 11000}, "feed-forward width on a rank: 11000"),
        ({"ffn_hidden_size": 11008, "tensor_model_parallel_size": 64}, "feed-forward width on a rank: 172"),
        ({"kv_channels": None, "hidden_size": 2056}, "hidden size on a rank: 2056"),
        ({"num_moe_experts": 8, "moe_ffn_hidden_size": 776}, "expert's feed-forward width on a rank: 776"),
        ({"num_moe_experts": 8, "moe_ffn_hidden_size": 768, "ffn_hidden_size": 5}, None),
    ],
)
def test_widths_that_no_product_in_8_bits_takes_are_named(changes: dict[str, Any], word: str | None) -> None:
    said = list(fp8.uneven(model(**changes)))
    assert (word is None and not said) or any(str(word) in s for s in said)


def test_it_is_refused_here_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "has_transformer_engine", lambda: False)
    with pytest.raises(UsageError, match=r"megatron.fp8=current cannot be here: transformer-engine .*; .*8\.9.*Leave it out"):
        fp8.configure(model(), cfg())


def test_megatron_core_takes_what_it_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "has_transformer_engine", lambda: True)
    monkeypatch.setattr(fp8.metadata, "version", lambda name: "2.20.2")
    monkeypatch.setattr(platform, "attention_facts", lambda: {"capability": (9, 0)})
    found = model()
    fp8.configure(found, cfg())
    assert (found.fp8, found.fp8_recipe, found.first_last_layers_bf16) == ("hybrid", "tensorwise", True)
    from megatron.core.enums import Fp8Recipe
    from megatron.core.transformer.transformer_config import TransformerConfig

    made = TransformerConfig(num_layers=4, hidden_size=64, num_attention_heads=4, **fp8.FIELDS)
    assert made.fp8_recipe == Fp8Recipe.tensorwise and fp8.FIELDS.keys() <= {f.name for f in fields(TransformerConfig)}
    untouched = model()
    fp8.configure(untouched, cfg(fp8="none"))
    assert vars(untouched) == vars(model())


@pytest.mark.parametrize(("tensor", "ranks"), [(1, 1), (2, 1), (1, 2), (4, 2), (3, 5)])
def test_every_rank_s_tokens_are_a_multiple_of_sixteen(tensor: int, ranks: int) -> None:
    """Of each context-parallel rank, and of each that shares its tokens out again, in chunks of equal size."""
    from megatron_mmsr1.megatron.batch import multiple
    from megatron_mmsr1.megatron.layout import Share

    n = multiple(tensor, Share(ranks, 0), fp8.ALIGN)
    assert n % (ranks * tensor * 16) == 0 and (ranks == 1 or n % (2 * ranks) == 0)
    assert multiple(tensor, Share(ranks, 0)) == (ranks * math.lcm(2, tensor) if ranks > 1 else tensor)
