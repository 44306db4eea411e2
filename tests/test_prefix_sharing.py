"""Sequences that begin alike, in one pack: each beginning once, and places, attention and gradients are those of the sequences
alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mmsr1.data.prefixes import forest
from megatron_mmsr1.megatron.attention import parts
from megatron_mmsr1.megatron.attention.prefix import PrefixAttention
from megatron_mmsr1.megatron.layout import packed

CPU = torch.device("cpu")
# Few tokens and short texts: beginnings that agree, also at several depths, equal sequences, and some that begin another.
TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=9)


@given(TEXTS, st.integers(1, 4))
def test_the_forest_is_its_sequences(texts: list[list[int]], shortest: int) -> None:
    keys = [np.array(t) for t in texts]
    found = forest(keys, shared=True, shortest=shortest)
    pack = np.concatenate([keys[r.member][r.start : r.end] for r in found.runs])
    for key, rows in zip(keys, found.rows(), strict=True):
        assert (pack[rows] == key).all()  # which also says that there is a row for each token
        assert (np.diff(rows) > 0).all()
    for i, run in enumerate(found.runs):
        assert run.end > run.start
        assert -1 <= run.parent < i
        assert run.start == (found.runs[run.parent].end if run.parent >= 0 else 0)
        below = [j for j, other in enumerate(found.runs) if other.parent == i]
        assert len(below) != 1 or i in found.last  # nothing is cut that all share
        assert not below or run.end - run.start >= shortest
    assert len(pack) <= sum(map(len, texts))
    assert found == forest(keys, shared=True, shortest=shortest)


def test_what_begins_alike_stands_once() -> None:
    """A system message of 4, a prompt of 3 twice, one of 2: 4 + 3 + 2 and the 2 + 1 + 5 tokens of their own."""
    system, prompt, other = [9] * 4, [1, 2, 3], [7, 7]
    texts = [system + prompt + [4, 4], system + prompt + [5], system + other + [6] * 5, system + prompt + [4, 4]]
    found = forest([np.array(t) for t in texts], shared=True, shortest=2)
    sizes = [(r.end - r.start, r.parent) for r in found.runs]
    assert sorted(sizes) == sorted([(4, -1), (3, 0), (2, 1), (1, 1), (7, 0)])
    assert found.last[0] == found.last[3]
    alone = forest([np.array(t) for t in texts], shared=False)
    assert [(r.start, r.end, r.parent) for r in alone.runs] == [(0, len(t), -1) for t in texts]


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of one sequence, float64."""
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(len(q), len(k), dtype=torch.bool).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -math.inf).softmax(-1), v)


@pytest.mark.parametrize("kernel", ["aten", "written out"])
@given(TEXTS)
@settings(max_examples=examples(30))
def test_attention_and_gradients_are_those_of_the_sequences_alone(kernel: str, texts: list[list[int]]) -> None:
    """The unshared row of each sequence has copies of the shared rows; a shared row's gradient is the sum over its copies."""
    found = forest([np.array(t) for t in texts], shared=True, shortest=1)
    lengths = [r.end - r.start for r in found.runs]
    layout = packed(lengths, [r.parent for r in found.runs], device=CPU)
    generator = torch.Generator().manual_seed(len(texts))
    shapes = ((4, 8), (2, 8), (2, 8))
    q, k, v = (torch.randn(sum(lengths), *s, generator=generator, dtype=torch.float32) * 2 for s in shapes)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = [x.double().requires_grad_() for x in (q, k, v)]
    rows = [torch.from_numpy(r) for r in found.rows()]
    outs = [written_out(*(x[r] for x in theirs)) for r in rows]
    to_out = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outs]
    wanted = torch.autograd.grad(outs, theirs, to_out)
    with pytest.MonkeyPatch.context() as patch:
        if kernel == "written out":  # what CUDA does in float32
            patch.setattr(parts, "_on_cpu", lambda q: False)
        out = PrefixAttention.apply(*ours, layout, 1 / math.sqrt(8))
        given_back = torch.autograd.grad([out[r] for r in rows], ours, [g.float() for g in to_out])
    for r, o in zip(rows, outs, strict=True):
        torch.testing.assert_close(out[r].double(), o, atol=1e-5, rtol=1e-5)
    for a, b in zip(given_back, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-4)
