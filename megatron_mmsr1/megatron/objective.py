"""What a micro-batch's log-probs are worth: the loss of SFT or GRPO, as a share of the mean over the global batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_mmsr1.algorithm.kl import k3
from megatron_mmsr1.algorithm.losses import policy_loss
from megatron_mmsr1.algorithm.sft import nll
from megatron_mmsr1.config import AlgorithmConfig

SUMS = ("loss", "pg_loss", "kl", "entropy", "clip_fraction", "logprob_diff_mean")
MAXIMA = ("logprob_diff_max",)


@dataclass
class Inputs:
    """Per scored token of one micro-batch, all float32 [N]; `global_*` are sums over every rank and micro-batch."""

    weights: Tensor
    advantages: Tensor
    engine_logprobs: Tensor
    old_logprobs: Tensor | None  # None: the policy's own, detached
    ref_logprobs: Tensor | None  # None: no KL term
    global_tokens: float
    global_weight: float


def loss(cfg: AlgorithmConfig, scores: Tensor, x: Inputs) -> tuple[Tensor, np.ndarray]:
    """scores float32 [2, N] (log-prob, entropy). Returns the share of the loss and the shares of `SUMS + MAXIMA`, float64.

    Shares add up to the mean over the global batch's tokens (SFT's loss: over its weights), however they are split.
    """
    logprobs, entropy = scores[0], scores[1]
    zero = torch.zeros_like(logprobs)
    if cfg.name == "sft":
        value = nll(logprobs, x.weights).sum() / x.global_weight
        parts = [value.detach(), zero.sum(), zero.sum(), entropy.detach().sum() / x.global_tokens, zero.sum(), zero.sum()]
        return value, torch.stack([*parts, zero.sum()]).double().cpu().numpy()
    old = logprobs.detach() if x.old_logprobs is None else x.old_logprobs
    pg, clipped = policy_loss(logprobs, old, x.advantages, torch.ones_like(logprobs), cfg.clip_low, cfg.clip_high)
    per_token = pg
    kl = zero
    if x.ref_logprobs is not None:
        kl = k3(logprobs, x.ref_logprobs)
        per_token = per_token + cfg.kl_coef * kl
    if cfg.entropy_coef:
        per_token = per_token - cfg.entropy_coef * entropy
    value = per_token.sum() / x.global_tokens
    gap = (old - x.engine_logprobs).abs()
    sums = torch.stack([per_token.sum(), pg.sum(), kl.sum(), entropy.sum(), clipped.sum(), gap.sum()]).detach()
    largest = gap.max() if len(gap) else gap.sum()
    return value, torch.cat([sums / x.global_tokens, largest[None]]).double().cpu().numpy()
