"""Which tokens of an update drive its entropy down: those whose log-prob and advantage go together (arXiv 2505.22617)."""

from __future__ import annotations

import torch
from torch import Tensor


def covariances(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """float64 [U]: (A - mean A) * (logprobs - mean logprobs) of each of the update's U tokens; no gradient."""
    a, lp = advantages.detach().double(), logprobs.detach().double()
    return (a - a.mean()) * (lp - lp.mean())


def chosen(candidates: Tensor, count: int, seed: int) -> Tensor:
    """bool [U]: `count` of the candidates (bool [U]) by lot, or all if they are fewer; the same for the same seed."""
    places = candidates.nonzero().squeeze(1)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count]
    marked = torch.zeros_like(candidates)
    marked[places[order.to(places.device)]] = True
    return marked
