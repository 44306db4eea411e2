"""The parts, against plain formulas."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_cases.harness import Lab, close
from megatron_cases.tiny import ID

ID_OF_PAD = ID["<|image_pad|>"]


def log_prob(lab: Lab) -> None:
    """TokenHead against log_softmax and its autograd, with temperature, banned ids, chunks and an entropy gradient."""
    from megatron_mmsr1.megatron import parallel
    from megatron_mmsr1.megatron.forward_backward import parallel_state
    from megatron_mmsr1.megatron.logprob import TokenHead

    parallel.init(lab.config(megatron={"tensor_parallel": lab.world}))
    group: Any = parallel_state.get_tensor_model_parallel_group()
    torch.manual_seed(0)
    tokens, hidden, vocabulary = 13, 8, 20
    h = torch.randn(tokens, 1, hidden)
    w = torch.randn(vocabulary, hidden)
    banned = [3, 12, 19]
    for rows in ([], [0, 2, 3, 7, 8, 11, 12]):
        n = len(rows)
        targets = torch.tensor([1, 0, 18, 5, 10, 9, 2][:n], dtype=torch.int64)
        weigh = torch.randn(2, n)
        h1, w1 = h.clone().requires_grad_(), w.clone().requires_grad_()
        z = h1.squeeze(1)[rows] @ w1.T / 0.7
        mask = torch.zeros(vocabulary).index_fill(0, torch.tensor(banned), 1.0).bool()
        logp = torch.log_softmax(z.masked_fill(mask, -torch.inf), -1)
        entropy = -(logp.exp() * logp.masked_fill(mask, 0.0)).sum(-1)
        wanted = torch.stack([logp.gather(1, targets[:, None]).squeeze(1), entropy])
        (wanted * weigh).sum().backward()
        for chunk in (3, 100):
            size = vocabulary // lab.world
            mine = slice(lab.rank * size, (lab.rank + 1) * size)
            h2, w2 = h.clone().requires_grad_(), w[mine].clone().requires_grad_()
            head = TokenHead(
                torch.tensor(rows, dtype=torch.int64),
                targets,
                banned=banned,
                temperature=0.7,
                chunk=chunk,
                group=group,
                sequence_parallel=False,
            )
            found = head(h2, w2)
            (found * weigh).sum().backward()
            assert h1.grad is not None and w1.grad is not None and h2.grad is not None and w2.grad is not None
            if n:
                close(found, wanted, 1e-5, "values")
            close(h2.grad, h1.grad, 1e-5, "hidden gradient")
            close(w2.grad, w1.grad[mine], 1e-5, "weight gradient")


def attention_and_rope(lab: Lab) -> None:
    """A pack of ragged sequences against one sequence at a time."""
    from megatron_mmsr1.megatron.attention.layer import PackedAttention
    from megatron_mmsr1.megatron.layout import packed
    from megatron_mmsr1.megatron.rope import apply_packed

    torch.manual_seed(0)
    lengths = [5, 90, 1, 33, 90, 7]
    total, heads, groups, d = sum(lengths), 4, 2, 8
    layout = packed(lengths, device=torch.device("cpu"))
    assert sum(n for n, _ in layout.batches) == len(lengths)
    half = torch.randn(total, 1, 1, d // 2)
    angles = torch.cat([half, half], -1)
    q, k, v = (torch.randn(total, n, d, requires_grad=True) for n in (heads, groups, groups))
    attention = PackedAttention(None, 1, None, "self")
    bounds = layout.cu_seqlens_q
    assert bounds is not None
    out = attention(apply_packed(q, bounds, angles), apply_packed(k, bounds, angles), v, packed_seq_params=layout)
    weigh = torch.randn_like(out)
    found = torch.autograd.grad((out * weigh).sum(), (q, k, v))

    def rotate(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * angles.squeeze(1).cos() + torch.cat([-b, a], -1) * angles.squeeze(1).sin()

    parts = []
    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        whole = (rotate(q), rotate(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        one_q, one_k, one_v = (x[a:b].transpose(0, 1) for x in whole)
        parts.append(F.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=True).transpose(0, 1).flatten(1))
    wanted_out = torch.cat(parts)
    wanted = torch.autograd.grad((wanted_out * weigh).sum(), (q, k, v))
    close(out, wanted_out, 1e-5, "attention")
    for name, a, b in zip("qkv", found, wanted, strict=True):
        close(a, b, 1e-5, f"gradient of {name}")


def objects(lab: Lab) -> None:
    """Lists from the leaders in data-parallel order, on every rank; sums and maxima."""
    from megatron_mmsr1.megatron import parallel

    p = parallel.init(lab.config())
    assert (p.dp_size, p.dp_rank, p.is_leader) == (2, lab.rank, True)
    assert p.gather_from_leaders([f"from {lab.rank}"] * (lab.rank + 1)) == ["from 0", "from 1", "from 1"]
    assert p.gather_from_leaders([{"big": b"x" * 100_000}] if lab.rank else []) == [{"big": b"x" * 100_000}]
    assert p.broadcast_object({"a": lab.rank}) == {"a": 0}
    assert p.sum([1.0, float(lab.rank)]) == [2.0, 1.0] and p.max([float(lab.rank)]) == [1.0]
    _shares(p, lab)
    p = parallel.init(lab.config(megatron={"tensor_parallel": 2}))
    assert p.is_leader == (lab.rank == 0)
    assert p.gather_from_leaders([lab.rank]) == [0]
    p = parallel.init(lab.config(megatron={"pipeline_parallel": 2}))
    assert p.gather_from_leaders([lab.rank]) == [0] and p.gather_from_speakers([lab.rank]) == [1]
    assert dist.get_world_size() == 2


def shares(lab: Lab) -> None:
    """With four ranks: two replicas of two, by tensor, pipeline or context parallelism."""
    from megatron_mmsr1.megatron import parallel

    for layout in ({"tensor_parallel": 2}, {"pipeline_parallel": 2}, {"context_parallel": 2}):
        p = parallel.init(lab.config(megatron=layout))
        everyone = p.gather_from_leaders([p.rank])
        assert everyone == p.leaders and sorted(r for d in range(2) for r in p.replica(d)) == [0, 1, 2, 3]
        assert p.rank in p.replica(p.dp_rank)
        _shares(p, lab)


def _shares(p: Any, lab: Lab) -> None:
    """Whatever a leader has, each trajectory reaches the replica that wants it, whole, in the global order, and no other."""
    every = lab.trajectories
    for cut, owners in ((3, [0, 1, 0, 1, 1, 0]), (0, [1, 1, 1, 1, 1, 1]), (6, [0, 0, -1, 1, 0, -1]), (2, [1, 1, 0, 0, 0, 0])):
        counts = [cut, len(every) - cut]
        local = (every[:cut], every[cut:])[p.dp_rank] if p.is_leader else []
        wanted = [t for t, owner in zip(every, owners, strict=True) if owner == p.dp_rank]
        got = p.distribute(local, counts, owners)
        assert [(t.prompt_id, t.sample_index, t.token_ids, t.logprobs, t.images) for t in got] == [
            (t.prompt_id, t.sample_index, t.token_ids, t.logprobs, t.images) for t in wanted
        ]
        for t in got:
            t.check(ID_OF_PAD)


def log_prob_memory(lab: Lab) -> None:
    """At its peak TokenHead holds an eighth of what autograd holds for log_softmax and entropy of all tokens, forwards and
    backwards, the weight's gradient counted for both: 2,048 tokens of a vocabulary of 8,192, 64 at a time."""
    from benchmarks.allocations import Allocations
    from megatron_mmsr1.megatron import parallel
    from megatron_mmsr1.megatron.forward_backward import parallel_state
    from megatron_mmsr1.megatron.logprob import TokenHead

    parallel.init(lab.config())
    group: Any = parallel_state.get_tensor_model_parallel_group()
    tokens, hidden, vocabulary = 2048, 16, 8192
    targets = torch.arange(tokens) % vocabulary
    head = TokenHead(
        torch.arange(tokens),
        targets,
        banned=[],
        temperature=1.0,
        chunk=64,
        group=group,
        sequence_parallel=False,
    )

    def naive(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        logp = torch.log_softmax(h.squeeze(1) @ w.T, -1)
        return torch.stack([logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)])

    peaks, found = [], []
    for way in (head, naive):
        torch.manual_seed(0)
        h, w = torch.randn(tokens, 1, hidden).requires_grad_(), torch.randn(vocabulary, hidden).requires_grad_()
        counted = Allocations()
        with counted, counted.during("all"):
            out = way(h, w)
            out.sum().backward()
        peaks.append(counted.most["all"])
        assert h.grad is not None and w.grad is not None
        found.append((out.detach(), h.grad, w.grad))
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-3, "values and gradients")
    assert peaks[0] <= peaks[1] / 8, f"{peaks[0]:,} bytes, {peaks[1]:,} by autograd"
