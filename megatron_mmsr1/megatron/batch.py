"""Trajectories into packed micro-batches: what one forward pass of one data-parallel rank takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_mmsr1.data.packing import balance, pack
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron.layout import Packed, packed
from megatron_mmsr1.models import Family
from megatron_mmsr1.trajectory import ImageRef, Trajectory


@dataclass
class MicroBatch:
    """Sequences laid end to end, T tokens with padding. N counts the tokens that are scored: each stands at a row t and is the
    token at t + 1 of the same sequence.
    """

    members: list[int]  # the trajectories, as indices into the global list; empty for a filler
    input_ids: Tensor  # int64 [1, T]
    position_ids: Tensor  # int64 [3, 1, T]
    layout: Packed
    images: list[ImageRef]  # every occurrence, in the order of their pads
    image_tokens: Tensor  # int64 [image tokens]
    rows: Tensor  # int64 [N]
    targets: Tensor  # int64 [N]
    source: np.ndarray  # int64 [N]: the scored token's place in its trajectory
    owner: np.ndarray  # int64 [N]: its trajectory, as an index into the global list


@dataclass(frozen=True)
class PackingSpec:
    """What packing needs to know of the model and the layout."""

    family: Family  # whose positions
    image_pad_id: int
    merge: int
    multiple: int  # T is padded to a multiple of this (the tensor-parallel size under sequence parallelism)
    budget: int  # tokens a micro-batch
    hidden: int
    banned: frozenset[int]
    device: torch.device


def plan(lengths: Sequence[int], dp_size: int, budget: int, hidden: int) -> list[list[list[int]]]:
    """Indices by data-parallel rank and micro-batch, the same on every rank that asks, every rank with as many micro-batches.

    A rank with fewer packs than the fullest one splits its largest; one with fewer sequences than that gets empty ones, so
    that pipelines and collectives stay in step.
    """
    # Matrix multiplications grow with n, attention with n**2: n * (1 + n / 6h) is a layer's cost up to a factor.
    ranks = balance([n * (1 + n / (6 * hidden)) for n in lengths], dp_size)
    packs = [[[mine[i] for i in p] for p in pack([lengths[i] for i in mine], budget)] for mine in ranks]
    count = max(1, *(len(p) for p in packs))
    return [_split_to(p, count) for p in packs]


def update_parts(n: int, updates: int) -> list[list[int]]:
    """The indices of each of a step's optimizer updates; none is empty."""
    return [p.tolist() for p in np.array_split(np.arange(n), updates) if len(p)]


def owners(lengths: Sequence[int], updates: int, dp_size: int, budget: int, hidden: int) -> list[int]:
    """The data-parallel rank that `plan` gives each trajectory to, over all of the step's updates."""
    out = [-1] * len(lengths)
    for part in update_parts(len(lengths), updates):
        for rank, packs in enumerate(plan([lengths[i] for i in part], dp_size, budget, hidden)):
            for members in packs:
                for m in members:
                    out[part[m]] = rank
    return out


def _split_to(packs: list[list[int]], count: int) -> list[list[int]]:
    while len(packs) < count:
        largest = max(range(len(packs)), key=lambda i: len(packs[i]), default=-1)
        if largest < 0 or len(packs[largest]) < 2:
            packs.append([])
            continue
        members = packs.pop(largest)
        packs += [members[0::2], members[1::2]]
    return packs


def token_weights(t: Trajectory) -> np.ndarray:
    """The weight of each token in the loss, float32 [T]: the loss mask, unless a demonstration brings its own."""
    return np.asarray(t.loss_mask if t.loss_weights is None else t.loss_weights, dtype=np.float32)


def scored(t: Trajectory, weights: np.ndarray) -> tuple[int, float]:
    """How many tokens the loss covers and the sum of their weights, of an outline too. `weights`: its `token_weights`.
    Position 0 is never scored."""
    if t.is_outline:
        return t.sampled_tokens, float(t.sampled_tokens)
    return int(np.count_nonzero(weights[1:])), float(weights[1:].sum(dtype=np.float64))


def check(trajectories: Sequence[Trajectory], g: PackingSpec, vocabulary: int) -> None:
    """Raise UsageError for a trajectory that cannot be trained on: broken invariants, ids outside the vocabulary, a loss on
    tokens that may not be sampled. Outlines, which another replica trains on, are left to its check."""
    for t in trajectories:
        if t.is_outline:
            continue
        where = f"trajectory {t.prompt_id}#{t.sample_index}"
        try:
            t.check(g.image_pad_id, g.merge)
        except ValueError as e:
            raise UsageError(f"{where}: {e}") from e
        ids, weights = np.asarray(t.token_ids), token_weights(t)
        if len(ids) < 2:
            raise UsageError(f"{where}: {len(ids)} tokens leave nothing to predict")
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise UsageError(
                f"{where}: token ids {ids.min()}..{ids.max()} are not all in the model's vocabulary of {vocabulary}"
            )
        if np.isin(ids[weights != 0], list(g.banned)).any():
            raise UsageError(f"{where}: the loss covers a vision token, which the model can never be asked for")


def collate(trajectories: Sequence[Trajectory], members: list[int], g: PackingSpec, *, every_token: bool = False) -> MicroBatch:
    """One micro-batch. Scored are the tokens under the loss mask, or every token but the first of each sequence (and but the
    vision tokens)."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    rows, targets, source, owner = [], [], [], []
    images: list[ImageRef] = []
    at = 0
    for m in members:
        t = trajectories[m]
        tokens = np.asarray(t.token_ids, dtype=np.int64)
        scored = ~np.isin(tokens, list(g.banned)) if every_token else token_weights(t) != 0
        scored[0] = False  # nothing comes before it
        places = np.flatnonzero(scored)
        ids.append(tokens)
        positions.append(g.family.positions(tokens, g.image_pad_id, [i.grid_thw for i in t.images], g.merge))
        rows.append(places - 1 + at)
        targets.append(tokens[places])
        source.append(places)
        owner.append(np.full(len(places), m))
        images += t.images
        at += len(tokens)
    lengths = [len(i) for i in ids]
    if at == 0 or at % g.multiple:  # padding, and the filler of an empty micro-batch, are a sequence of their own
        n = g.multiple - at % g.multiple
        ids.append(np.zeros(n, dtype=np.int64))
        positions.append(np.broadcast_to(np.arange(n), (3, n)))
        lengths.append(n)
    flat = np.concatenate(ids)

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)).to(g.device)

    return MicroBatch(
        members=members,
        input_ids=torch.from_numpy(flat)[None].to(g.device),
        position_ids=torch.from_numpy(np.concatenate(positions, 1))[:, None].to(g.device),
        layout=packed(lengths, device=g.device),
        images=images,
        image_tokens=torch.from_numpy(np.flatnonzero(flat == g.image_pad_id)).to(g.device),
        rows=tensor(rows),
        targets=tensor(targets),
        source=np.concatenate(source) if source else np.empty(0, dtype=np.int64),
        owner=np.concatenate(owner) if owner else np.empty(0, dtype=np.int64),
    )
