"""The split of a pack over context-parallel ranks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mmsr1.data import zigzag
from megatron_mmsr1.data.prefixes import forest
from megatron_mmsr1.megatron.attention.prefix import PrefixAttention
from megatron_mmsr1.megatron.layout import Share, packed

CPU = torch.device("cpu")
RANKS = st.integers(1, 5)
HALVES = st.lists(st.integers(1, 7), min_size=1, max_size=6)  # chunks of a run, a size each


@given(HALVES, RANKS)
def test_every_row_has_one_rank_and_every_rank_as_much_to_do(sizes: list[int], ranks: int) -> None:
    lengths = [n * zigzag.multiple(ranks) for n in sizes]
    held = [zigzag.rows(lengths, ranks, r) for r in range(ranks)]
    assert sorted(np.concatenate(held).tolist()) == list(range(sum(lengths)))
    assert all((np.diff(h) > 0).all() for h in held)
    for start, end in pairwise(np.cumsum([0, *lengths]).tolist()):
        mine = [h[(h >= start) & (h < end)] - start for h in held]
        # A row attends to as many keys as its place in the run, counted from 1.
        assert len({(len(m), int((m + 1).sum())) for m in mine}) == 1


def test_two_ranks_of_two_runs() -> None:
    """Runs of 8 and 4 tokens in chunks of 2 and 1: rank 0 holds the outer chunks, rank 1 the inner ones."""
    assert zigzag.rows([8, 4], 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert zigzag.rows([8, 4], 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


def test_a_run_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="10 tokens does not divide over 2 ranks"):
        zigzag.rows([8, 10], 2, 0)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=6), RANKS)
@settings(max_examples=40)
def test_attention_of_the_ranks_together_is_that_of_the_pack(texts: list[list[int]], ranks: int) -> None:
    """Runs that several sequences share, padded to be cut: outputs at each rank's rows, and the sum of all ranks' gradients,
    are those of one rank without padding."""
    found = forest([np.array(t) for t in texts], shared=True, shortest=1)
    ends = [r.end - r.start for r in found.runs]
    lengths = [n + -n % zigzag.multiple(ranks) for n in ends]
    parents = [r.parent for r in found.runs]
    real = torch.cat([torch.arange(s, s + n) for s, n in zip(np.cumsum([0, *lengths]).tolist(), ends, strict=False)])
    generator = torch.Generator().manual_seed(len(texts))
    q, k, v = (torch.randn(sum(ends), h, 8, generator=generator, requires_grad=True) for h in (4, 2, 2))
    to_out = torch.randn(sum(ends), 4, 8, generator=generator)
    scale = 1 / math.sqrt(8)
    wanted = PrefixAttention.apply(q, k, v, packed(ends, parents, device=CPU), scale)
    gradients = torch.autograd.grad(wanted, (q, k, v), to_out)
    # What stands in padding must not matter: large numbers would show.
    spread = [torch.full((sum(lengths), *x.shape[1:]), 50.0).index_copy(0, real, x) for x in (q, k, v)]
    to_rows = torch.zeros(sum(lengths), 4, 8).index_copy(0, real, to_out)
    sums = [torch.zeros_like(x) for x in (q, k, v)]
    for rank in range(ranks):
        rows = torch.from_numpy(zigzag.rows(lengths, ranks, rank))
        layout = packed(lengths, parents, ends=ends, share=Share(ranks, rank), device=CPU)
        out = PrefixAttention.apply(spread[0][rows], *spread[1:], layout, scale)
        whole = torch.zeros(sum(lengths), 4, 8).index_copy(0, rows, out)[real]
        mine = torch.isin(real, rows)
        torch.testing.assert_close(whole[mine], wanted[mine], atol=1e-5, rtol=1e-5)
        for total, part in zip(sums, torch.autograd.grad(out, (q, k, v), to_rows[rows], retain_graph=True), strict=True):
            total += part
    for total, g in zip(sums, gradients, strict=True):
        torch.testing.assert_close(total, g, atol=1e-4, rtol=1e-4)
