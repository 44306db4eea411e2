"""The trainer's attention: which kernel is chosen, what each says that it lacks, and that each computes the same."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mmsr1.data import zigzag
from megatron_mmsr1.data.prefixes import forest
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron import platform
from megatron_mmsr1.megatron.attention import flex, padded, varlen
from megatron_mmsr1.megatron.attention.choice import KERNELS, choose
from megatron_mmsr1.megatron.attention.kernel import Situation
from megatron_mmsr1.megatron.layout import Packed, Share, packed

CPU = torch.device("cpu")
# Hopper with all there is, and a run without anything special.
ALL = Situation(True, (9, 0), True, True, True, True, True, "bfloat16", 128, 1, False)


def where(**changes: Any) -> Situation:
    return dataclasses.replace(ALL, **changes)


# ------------------------------------------------------------------------------------------------------------- the choice
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "transformer-engine"),
        ({"transformer_engine": False}, "varlen"),
        ({"transformer_engine": False, "varlen": False}, "flash"),
        ({"transformer_engine": False, "varlen": False, "flash": False}, "cudnn"),
        ({"context_parallel": 2}, "transformer-engine"),
        ({"context_parallel": 2, "transformer_engine": False}, "flash"),
        ({"shared_prefixes": True}, "flash"),
        ({"dtype": "float32"}, "padded"),
        ({"head": 100, "transformer_engine": False}, "padded"),
        ({"capability": (7, 5)}, "padded"),
        ({"cuda": False, "capability": (0, 0)}, "padded"),
    ],
)
def test_the_first_that_can_is_taken(changes: dict[str, Any], wanted: str) -> None:
    s = where(**changes)
    found = choose("auto", s)
    assert found.kernel.name == wanted
    assert found.slow == (s.cuda and wanted == "padded"), "never a silent slow one"
    names = [n for n, k in KERNELS.items() if k.automatic]
    assert list(found.lacking) == names[: names.index(wanted)] and all(found.lacking.values())
    assert all(n in found.reason for n in found.lacking), "each that was passed over is named"


def test_the_reason_is_told_once_for_all_that_share_it() -> None:
    s = where(cuda=False, capability=(0, 0), transformer_engine=False)
    assert choose("auto", s).reason == (
        "padded (torch's scaled_dot_product_attention over padded batches); not transformer-engine or varlen or flash or "
        "cudnn: no CUDA device"
    )
    assert choose("auto", where(dtype="float32")).reason.endswith(
        "not transformer-engine or varlen or flash or cudnn: model.dtype=float32, not bfloat16"
    )


@pytest.mark.parametrize(
    ("name", "changes", "lacks"),
    [
        ("transformer-engine", {"transformer_engine": False}, "not installed"),
        ("transformer-engine", {"shared_prefixes": True}, "megatron.share_prefixes"),
        ("varlen", {"varlen": False}, "torch.nn.attention.varlen"),
        ("varlen", {"context_parallel": 2}, "megatron.context_parallel=2"),
        ("varlen", {"dtype": "float32"}, "model.dtype=float32"),
        ("flash", {"flash": False}, "built without FlashAttention"),
        ("flash", {"head": 260}, "a head size of 260"),
        ("flash", {"capability": (7, 5)}, "7.5, below 8.0"),
        ("cudnn", {"cudnn": False}, "no cuDNN"),
        ("cudnn", {"shared_prefixes": True}, "megatron.share_prefixes"),
        ("flex", {"triton": False}, "triton"),
        ("flex", {"head": 8}, "a head size of 8"),
        ("flex", {"cuda": False}, "no CUDA device"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_what_lacks(name: str, changes: dict[str, Any], lacks: str) -> None:
    assert choose(name, ALL).kernel.name == name and choose(name, ALL).asked
    with pytest.raises(UsageError, match=rf"megatron.attention={name} cannot be here: .*{lacks}.*What can: .*padded"):
        choose(name, where(**changes))


def test_flex_takes_what_others_do_not_and_is_never_taken_unasked() -> None:
    s = where(context_parallel=2, shared_prefixes=True, dtype="float32")
    assert choose("flex", s).kernel.name == "flex" and choose("auto", s).kernel.name == "padded"


def test_the_padded_one_on_a_gpu_is_called_slow_also_when_asked_for() -> None:
    assert choose("padded", ALL).slow and not choose("padded", where(cuda=False)).slow


def test_the_config_knows_the_same_names() -> None:
    from megatron_mmsr1.config import MegatronConfig

    literal = MegatronConfig.model_fields["attention"].annotation
    assert set(KERNELS) | {"auto"} == set(getattr(literal, "__args__", ()))


# -------------------------------------------------------------------------------------------------------------- the masks
TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=7)


def layout_of(texts: list[list[int]], share: Share, scale: int = 1) -> tuple[Packed, list[int], list[int]]:
    """Of texts that begin alike, each token `scale` times; lengths of the runs and their parents."""
    found = forest([np.repeat(t, scale) for t in texts], shared=True, shortest=1)
    ends = [r.end - r.start for r in found.runs]
    lengths = [n + -n % zigzag.multiple(share.ranks) for n in ends]
    parents = [r.parent for r in found.runs]
    return packed(lengths, parents, ends=ends, share=share, device=CPU), lengths, parents


def seen(layout: Packed, lengths: list[int], parents: list[int], ends: list[int]) -> torch.Tensor:
    """bool [T, T], from what a run is: its own rows as far as this one, and the real rows of those above."""
    starts = np.cumsum([0, *lengths]).tolist()
    out = torch.zeros(starts[-1], starts[-1], dtype=torch.bool)
    for i, start in enumerate(starts[:-1]):
        own = slice(start, starts[i + 1])
        out[own, own] = torch.ones(lengths[i], lengths[i], dtype=torch.bool).tril()
        above = parents[i]
        while above >= 0:
            out[own, starts[above] : starts[above] + ends[above]] = True
            above = parents[above]
    return out


@given(TEXTS, st.integers(1, 4), st.sampled_from([1, 1, 17]))
@settings(max_examples=examples(40))
def test_the_block_mask_is_that_of_the_runs(texts: list[list[int]], ranks: int, scale: int) -> None:
    """Row by row by the mask's own function, and by blocks: none is called empty that is not, and none full that is not."""
    for rank in range(ranks):
        layout, lengths, parents = layout_of(texts, Share(ranks, rank), scale)
        ends = [r.end - r.start for r in forest([np.repeat(t, scale) for t in texts], shared=True, shortest=1).runs]
        rows = torch.from_numpy(zigzag.rows(lengths, ranks, rank))
        wanted = seen(layout, lengths, parents, ends)[rows]
        made = flex.mask(layout)
        q, k = torch.arange(len(rows))[:, None], torch.arange(sum(lengths))[None]
        assert (made.mask_mod(0, 0, q, k) == wanted).all()
        some, every = flex.blocks(layout.until, rows if ranks > 1 else None)
        parts = [wanted[i : i + flex.BLOCK].split(flex.BLOCK, 1) for i in range(0, len(rows), flex.BLOCK)]
        for i, stripe in enumerate(parts):
            for j, block in enumerate(stripe):
                assert bool(some[i, j]) == bool(block.any()) if ranks == 1 else some[i, j] >= block.any()
                assert not every[i, j] or (bool(block.all()) and block.shape == (flex.BLOCK, flex.BLOCK))
        assert (made.to_dense()[0, 0] == some).all()


def test_blocks_that_are_seen_whole_are_called_so() -> None:
    """A run of three blocks: the last sees the first two whole; and a run of its own below it all but its own block."""
    some, every = flex.blocks(packed([384, 128], [-1, 0], device=CPU).until, None)
    assert some.tolist() == [[j <= i for j in range(4)] for i in range(4)]
    assert every.tolist() == [[j < i for j in range(4)] for i in range(4)]
    alone, _ = flex.blocks(packed([256, 256], device=CPU).until, None)
    assert alone.tolist() == [[j <= i and i // 2 == j // 2 for j in range(4)] for i in range(4)]


# ------------------------------------------------------------------------------------------------------------ the numbers
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("scale", [1, 19])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_is_the_padded_attention_and_so_are_its_gradients(ranks: int, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that share beginnings at two depths, of uneven lengths, four heads over two groups; up to some 500 tokens.
    torch refuses gradients on a CPU, where only this test asks for them: what refuses is put aside."""
    import torch.nn.attention.flex_attention as torchs

    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    texts = [[0, 1, 1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0]]
    for rank in range(ranks):
        layout, lengths, _ = layout_of(texts, Share(ranks, rank), scale)
        assert layout.below
        generator = torch.Generator().manual_seed(scale)
        q, k, v = (
            torch.randn(n, h, 16, generator=generator, requires_grad=True)
            for n, h in zip((len(layout.slots), sum(lengths), sum(lengths)), (4, 2, 2), strict=True)
        )
        outs = [a(q, k, v, layout, 0.25) for a in (flex.attend, padded.attend)]
        to_out = torch.randn(outs[0].shape, generator=generator)
        ours, theirs = (torch.autograd.grad(o, (q, k, v), to_out) for o in outs)
        torch.testing.assert_close(outs[0], outs[1], atol=2e-6, rtol=1e-5)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_varlen_is_called_as_torch_has_it() -> None:
    """By the signature that is installed, the one thing of it that a machine without a GPU can tell."""
    from torch.nn.attention.varlen import varlen_attn

    signature = inspect.signature(varlen_attn)
    bound = signature.bind(0, 0, 0, 0, 0, 1, 1, scale=1.0, window_size=(-1, 0), enable_gqa=True).arguments
    assert list(bound)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert platform.attention_facts()["varlen"]
    assert "(-1, 0) for causal attention" in (varlen_attn.__doc__ or "")


def test_varlen_refuses_a_pack_of_which_it_would_see_pieces() -> None:
    x = torch.zeros(8, 2, 8)
    for layout in (packed([4, 4], [-1, 0], device=CPU), packed([16], share=Share(2, 0), device=CPU)):
        with pytest.raises(TypeError, match="whole sequences"):
            varlen.attend(x, x, x, layout, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, k in KERNELS.items() if k.attend is not None])
def test_every_kernel_on_a_gpu_is_a_softmax_written_out(name: str) -> None:
    from benchmarks.gpu.attention import apart
    from megatron_mmsr1.megatron.attention.choice import situation

    if lacks := KERNELS[name].lacks(situation()):
        pytest.skip(", ".join(lacks))
    assert max(apart(name, "cuda", torch.bfloat16).values()) < 0.03
