"""Advantages, corrections, policy losses, KL estimates and averages on tensors: a part a file, found by its name.

A recipe (`recipes/`) names a part of each; `composition.py` puts them together into what one update minimises. The
functions here call a single part by name, as tests and notebooks want it. They load torch and the part when they are called.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def advantage(name: str, rewards: Tensor | Sequence[float], group_ids: Tensor | Sequence[Hashable], **options: Any) -> Tensor:
    """The advantage of each of N rollouts by the estimator of this name (`advantages/`): float32 [N].

    `rewards` [N] are plain numbers without a unit, `group_ids` [N] say which rollouts answer the same prompt, in any order;
    `options` are the estimator's settings, for `gigpo`, whose rows are turns, also its `rollout_ids` and `keys`. Raises
    UsageError for an unknown name or option, ValueError for lengths that differ and for a reward that is not finite.
    """
    from megatron_mmsr1.algorithm import advantages
    from megatron_mmsr1.algorithm.composition import part

    rows = {k: options.pop(k) for k in ("rollout_ids", "keys") if k in options}
    return part(advantages.REGISTRY, name, options).estimate(rewards, group_ids, **rows)


def policy_loss(
    name: str, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cu_seqlens: Tensor, **options: Any
) -> Tensor:
    """The policy loss of each of T sampled tokens, before any averaging (`policy_losses/`): float32 [T].

    `logprobs`, `old_logprobs` (natural logarithms) and `advantages` are float [T]; gradients flow to `logprobs` alone.
    `cu_seqlens` int [S + 1] bounds the S responses that lie end to end: 0 first, T last. A loss that selects tokens of the
    whole update (`clip_cov`, `kl_cov`) takes these for it. Raises UsageError for an unknown name or option.
    """
    from megatron_mmsr1.algorithm import policy_losses
    from megatron_mmsr1.algorithm.composition import by_name, part

    loss = part(policy_losses.REGISTRY, name, options)
    select: Any = getattr(loss, "select", None)
    selected = select(logprobs.detach(), old_logprobs, advantages) if select else None
    offered = {"selected": selected, "advantages": advantages, "logprobs": logprobs.detach()}
    return loss.losses(logprobs, old_logprobs, advantages, cu_seqlens, **by_name(loss, offered))


def correction(name: str, old_logprobs: Tensor, engine_logprobs: Tensor, cu_seqlens: Tensor, **options: Any) -> Tensor:
    """The weight of each of T tokens that makes up for the engine having sampled from other probabilities than the trainer's
    (`corrections/`): float32 [T], without gradient, 1 where both agree.

    `old_logprobs` are the trainer's under the weights that sampled, `engine_logprobs` the engine's, both float [T];
    `cu_seqlens` as for `policy_loss`. `opsm` also takes `advantages` and `logprobs`, float [T]. Raises UsageError for an
    unknown name or option.
    """
    from megatron_mmsr1.algorithm import corrections
    from megatron_mmsr1.algorithm.composition import part
    from megatron_mmsr1.algorithm.parts import BY_NAME

    given = {k: options.pop(k) for k in corrections.get(name).needs & BY_NAME if k in options}
    return part(corrections.REGISTRY, name, options).weights(old_logprobs, engine_logprobs, cu_seqlens, **given)


def kl(name: str, logprobs: Tensor, ref_logprobs: Tensor, **options: Any) -> Tensor:
    """An estimate of KL(policy || reference) at each of T sampled tokens (`kls/`), in nats: float32 [T].

    Both arguments are float [T]; gradients flow to `logprobs` alone. `unbiased` also takes `old_logprobs`, float [T]. Raises
    UsageError for an unknown name or option.
    """
    from megatron_mmsr1.algorithm import kls
    from megatron_mmsr1.algorithm.composition import part

    given = {k: options.pop(k) for k in ("old_logprobs",) if k in options}
    return part(kls.REGISTRY, name, options).penalty(logprobs, ref_logprobs, **given)
