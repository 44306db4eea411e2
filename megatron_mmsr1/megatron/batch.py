"""Trajectories into packed micro-batches: what one forward pass of one data-parallel rank takes.

Where trajectories begin alike, as those of a group do, the pack holds that beginning once (`data/prefixes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_mmsr1.data import zigzag
from megatron_mmsr1.data.prefixes import forest
from megatron_mmsr1.data.shares import Rates
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.megatron.layout import ALONE, Packed, Share, packed
from megatron_mmsr1.models import Family
from megatron_mmsr1.trajectory import ImageRef, Trajectory


@dataclass
class MicroBatch:
    """Runs of tokens laid end to end, T tokens with padding. N counts the tokens that are scored: at its row stands the token
    before it in the same sequence, which several sequences may have in common.

    Of a context-parallel rank `input_ids`, `position_ids`, `image_tokens`, `rows` and `targets` are its share, T of the pack's
    tokens and n of the scored ones, and rows count from its own first token; all else is the whole pack's.
    """

    members: list[int]  # the trajectories, as indices into the global list; empty for a filler
    input_ids: Tensor  # int64 [1, T]
    position_ids: Tensor  # int64 [3, 1, T]
    layout: Packed
    images: list[ImageRef]  # in the order of their pads; one that is shown to a shared run stands once
    image_tokens: Tensor  # int64 [image tokens]
    image_rows: Tensor | None  # int64 [image tokens], which of the images' features these are; None: all of them
    rows: Tensor  # int64 [N]
    targets: Tensor  # int64 [N]
    mine: Tensor | None  # int64 [n], which of the N scored tokens this rank scores; None: all of them
    source: np.ndarray  # int64 [N]: the scored token's place in its trajectory
    owner: np.ndarray  # int64 [N]: its trajectory, as an index into the global list
    places: list[np.ndarray]  # int64, of each member: the row of each of its tokens
    padded: int  # T, over all context-parallel ranks
    computed: int  # tokens without padding


@dataclass(frozen=True)
class PackingSpec:
    """What packing needs to know of the model and the layout."""

    family: Family  # whose positions
    image_pad_id: int
    merge: int
    multiple: int  # T is padded to a multiple of this: see `multiple`
    budget: int  # tokens a micro-batch
    rates: Rates  # what a trajectory costs
    banned: frozenset[int]
    device: torch.device
    shared: bool  # whether what trajectories begin with stands once
    share: Share = ALONE  # which of the context-parallel ranks this is


def multiple(tensor: int, share: Share, align: int = 1) -> int:
    """Of a pack's tokens: each of the context-parallel ranks has as many, in two chunks, and each of `tensor` ranks that
    share those out again (under sequence parallelism; else 1) as many, of which there are a multiple of `align`."""
    return share.ranks * math.lcm(2, tensor * align) if share.ranks > 1 else tensor * align


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
    chosen = [trajectories[m] for m in members]
    tokens = [np.asarray(t.token_ids, dtype=np.int64) for t in chosen]
    pictures: dict[ImageRef, int] = {}
    keys = [_keys(t, x, g, pictures) for t, x in zip(chosen, tokens, strict=True)] if g.shared else tokens
    runs = forest(keys, shared=g.shared)
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    images: list[ImageRef] = []
    whole: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of a member: its positions, and where its pictures begin
    for run in runs.runs:
        t, x = chosen[run.member], tokens[run.member]
        if run.member not in whole:
            first = np.cumsum([0, *(i.tokens(g.merge) for i in t.images)])[:-1]
            rows = np.flatnonzero(x == g.image_pad_id)[first]
            whole[run.member] = (g.family.positions(x, g.image_pad_id, [i.grid_thw for i in t.images], g.merge), rows)
        place, begins = whole[run.member]
        more = -(run.end - run.start) % zigzag.multiple(g.share.ranks)
        ids.append(np.pad(x[run.start : run.end], (0, more)))
        positions.append(np.pad(place[:, run.start : run.end], ((0, 0), (0, more)), mode="edge"))
        images += [i for i, at in zip(t.images, begins, strict=True) if run.start <= at < run.end]
    places = runs.rows(zigzag.multiple(g.share.ranks))
    rows, targets, source, owner = [], [], [], []
    for m, t, x, where in zip(members, chosen, tokens, places, strict=True):
        scored = ~np.isin(x, list(g.banned)) if every_token else token_weights(t) != 0
        scored[0] = False  # nothing comes before it
        at = np.flatnonzero(scored)
        rows.append(where[at - 1])
        targets.append(x[at])
        source.append(at)
        owner.append(np.full(len(at), m))
    lengths = [len(i) for i in ids]
    ends = [r.end - r.start for r in runs.runs]
    parents = [r.parent for r in runs.runs]
    if not ids or sum(lengths) % g.multiple:  # padding, and the filler of an empty micro-batch, are a sequence of their own
        n = g.multiple - sum(lengths) % g.multiple
        ids.append(np.zeros(n, dtype=np.int64))
        positions.append(np.broadcast_to(np.arange(n), (3, n)))
        lengths.append(n)
        ends.append(n)
        parents.append(-1)
    flat = np.concatenate(ids)
    held = zigzag.rows(lengths, g.share.ranks, g.share.rank)
    local = np.full(len(flat), -1, dtype=np.int64)  # of each row: where this rank holds it
    local[held] = np.arange(len(held))
    image_tokens = local[flat == g.image_pad_id]
    images, image_rows = _seen(images, image_tokens >= 0, g.merge)
    at = local[_joined(rows)]
    mine = at >= 0
    alone = g.share.ranks == 1

    def tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(g.device)

    return MicroBatch(
        members=members,
        input_ids=tensor(flat[held])[None],
        position_ids=tensor(np.concatenate(positions, 1)[:, held])[:, None],
        layout=packed(lengths, parents, ends=ends, share=g.share, device=g.device),
        images=images,
        image_tokens=tensor(image_tokens[image_tokens >= 0]),
        image_rows=None if alone else tensor(image_rows),
        rows=tensor(at[mine]),
        targets=tensor(_joined(targets)[mine]),
        mine=None if alone else tensor(np.flatnonzero(mine)),
        source=_joined(source),
        owner=_joined(owner),
        places=places,
        padded=len(flat),
        computed=sum(r.end - r.start for r in runs.runs),
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _seen(images: list[ImageRef], held: np.ndarray, merge: int) -> tuple[list[ImageRef], np.ndarray]:
    """The pictures of which any token is `held` (bool, of each of their tokens), and which of their features those tokens are,
    int64. The others this rank need not encode."""
    parts = np.split(held, np.cumsum([i.tokens(merge) for i in images])[:-1]) if images else []
    seen = [(i, part) for i, part in zip(images, parts, strict=True) if part.any()]
    return [i for i, _ in seen], np.flatnonzero(_joined([part for _, part in seen]))


def _keys(t: Trajectory, tokens: np.ndarray, g: PackingSpec, pictures: dict[ImageRef, int]) -> np.ndarray:
    """The tokens, int64 [T], with a negative number of its own for each picture at its pads. `pictures` holds those numbers."""
    numbers = [pictures.setdefault(i, -1 - len(pictures)) for i in t.images]
    keys = tokens.copy()
    keys[tokens == g.image_pad_id] = np.repeat(numbers, [i.tokens(g.merge) for i in t.images]) if numbers else 0
    return keys
