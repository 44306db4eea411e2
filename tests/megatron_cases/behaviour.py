"""What a step does, on one rank."""

from __future__ import annotations

import copy
import json
import math
from array import array
from typing import Any

import torch

from megatron_cases.harness import LAYOUTS, READABLE, Lab, close, raises, same_gradients
from megatron_mmsr1.errors import RunError


def each_image_once(lab: Lab) -> None:
    """A trained tower sees each distinct picture of an update once, forwards and backwards, whichever micro-batches have it; a
    frozen one, once ever."""
    forwards: list[int] = []
    backwards: list[int] = []
    images = [{i.sha256 for i in t.images} for t in lab.trajectories]
    distinct = len(set().union(*images))
    assert sum(map(len, images)) > distinct  # some picture is of several trajectories
    for frozen, tokens, steps in ((False, 10_000, 2), (False, 2, 2), (True, 10_000, 1), (True, 2, 1)):  # 2: one trajectory each
        actor = lab.actor(model={"freeze_vision": frozen}, megatron={"tokens_per_microbatch": tokens}, optimizer={"lr": 1e-6})
        forwards.clear()
        backwards.clear()
        tower = actor.model.core.visual
        hook = tower.register_forward_pre_hook(
            lambda module, args, kwargs: forwards.append(len(kwargs["grid_thw"])), with_kwargs=True
        )
        first = next(tower.parameters())
        grads = first.register_hook(lambda grad: backwards.append(1)) if first.requires_grad else None
        for _ in range(2):
            actor.train_step(lab.trajectories, lab.advantages)
        hook.remove()
        if grads is not None:
            grads.remove()
        assert sum(forwards) == steps * distinct, (frozen, tokens, forwards)
        assert len(backwards) == (0 if frozen else len(forwards))


def sft_weights(lab: Lab) -> None:
    """A weight of k is the same as k copies of the token; without weights, the loss is the mean over the mask."""
    sft = {"name": "sft"}
    plain = lab.trajectories[:2]
    actor = lab.actor(algorithm=sft, optimizer=READABLE)
    logprobs = actor.log_probs(plain)
    metrics = actor.train_step(plain, None)
    terms = [-x for t, row in zip(plain, logprobs, strict=True) for x, m in zip(row, t.loss_mask, strict=True) if m]
    assert math.isclose(metrics["loss"], sum(terms) / len(terms), rel_tol=1e-5)
    assert metrics["loss_tokens"] == len(terms)
    weighted = copy.deepcopy(plain)
    weighted[0].loss_weights = array("f", [2.0 * m for m in weighted[0].loss_mask])
    found = lab.gradients(lab.actor(algorithm=sft, optimizer=READABLE), weighted, advantages=None)
    wanted = lab.gradients(lab.actor(algorithm=sft, optimizer=READABLE), [plain[0], *plain], advantages=None)
    same_gradients(found, wanted)


def several_updates(lab: Lab) -> None:
    """Two updates over one batch: the ratio's denominator stays at the weights before the first."""
    two = {"updates_per_step": 2, "clip_low": 0.01, "clip_high": 0.01}
    actor = lab.actor(algorithm=two, optimizer={"lr": 1e-2})
    metrics = actor.train_step(lab.trajectories, lab.advantages)
    assert metrics["clip_fraction"] > 0  # the second update meets a policy that has moved
    assert actor.step == 1
    single = lab.actor(algorithm={"clip_low": 0.01, "clip_high": 0.01}, optimizer={"lr": 1e-2})
    assert single.train_step(lab.trajectories, lab.advantages)["clip_fraction"] == 0


def reference_and_kl(lab: Lab) -> None:
    """The reference is the model of step 0 and stays; KL is 0 before the first update and grows."""
    actor = lab.actor(algorithm={"kl_coef": 0.1}, optimizer={"lr": 1e-2})
    before = actor.log_probs(lab.trajectories, "reference")
    assert before == actor.log_probs(lab.trajectories)
    first, second = (actor.train_step(lab.trajectories, lab.advantages) for _ in range(2))
    assert first["kl"] == 0 and second["kl"] > 0
    assert actor.log_probs(lab.trajectories, "reference") == before
    assert actor.log_probs(lab.trajectories) != before


def not_finite(lab: Lab, layout: str = "tp1") -> None:
    """An update with such gradients changes nothing, on any rank, and is counted; the next one is as if it had not been. One in
    a row more than is allowed ends the run. Ranks say whose gradients they were."""
    section = {"max_skipped_updates": 1}
    nan = [float("nan"), *lab.advantages[1:]]
    other = lab.actor(megatron=LAYOUTS[layout])
    wanted = other.train_step(lab.trajectories, lab.advantages)
    after = other.weights_id()
    del other
    actor = lab.actor(megatron=LAYOUTS[layout], train=section)
    before = actor.weights_id()
    metrics = actor.train_step(lab.trajectories, nan)
    assert metrics["skipped_updates"] == 1 and "grad_norm" not in metrics and actor.weights_id() == before != after
    again = actor.train_step(lab.trajectories, lab.advantages)
    assert again["skipped_updates"] == 0 and again["grad_norm"] == wanted["grad_norm"] and actor.weights_id() == after
    actor.train_step(lab.trajectories, nan)
    with raises(RunError, "2 optimizer updates in a row", "train.max_skipped_updates=1"):
        actor.train_step(lab.trajectories, nan)
    assert actor.weights_id() == after
    if lab.rank == 0:
        found = [json.loads(f.read_text()) for f in (lab.root / "out" / "nonfinite").glob("step_000000.rank*.json")]
        assert found and all(f["parameters"] for f in found)
        assert {m for f in found for b in f["micro_batches"] for m in b["trajectories"]} >= {"g0#0"}


def nothing_to_train(lab: Lab) -> None:
    """A batch whose groups were all dropped is a step without an update."""
    actor = lab.actor()
    before = actor.log_probs(lab.trajectories)
    metrics = actor.train_step([], [])
    assert metrics["tokens"] == 0 and actor.step == 1
    assert actor.log_probs(lab.trajectories) == before


def bfloat16(lab: Lab, layout: str = "tp1") -> None:
    """bfloat16 weights with float32 masters: near float32's log-probs, and it learns what it is told to."""
    split = LAYOUTS[layout]
    exact = lab.actor(megatron=split).log_probs(lab.trajectories)
    actor = lab.actor(megatron=split, model={"dtype": "bfloat16"}, algorithm={"name": "sft"}, optimizer={"lr": 1e-2})
    rough = actor.log_probs(lab.trajectories)
    for a, b in zip(exact, rough, strict=True):
        assert (torch.tensor(a) - torch.tensor(b)).abs().max() < 0.1
    losses = [actor.train_step(lab.trajectories, None)["loss"] for _ in range(6)]
    assert losses[-1] < losses[0] - 0.5


def decay_spares_norms_and_biases(lab: Lab) -> None:
    """Two steps against AdamW written down (arXiv 1711.05101, algorithm 2, with bias correction): matrices are decayed by
    lr * weight_decay a step, norms and biases are not."""
    lr, decay, (b1, b2), eps = 0.01, 0.5, (0.9, 0.95), 1e-8
    settings = {"lr": lr, "weight_decay": decay, "betas": [b1, b2], "eps": eps, "clip_grad": 0.0}
    for distributed in (True, False):
        actor = lab.actor(optimizer=settings, megatron={"distributed_optimizer": distributed})
        named = dict(actor.model.core.named_parameters())
        wanted = {n: p.detach().double().clone() for n, p in named.items() if p.requires_grad}
        spared = [n for n, p in wanted.items() if p.ndim == 1]
        assert any("norm" in n for n in spared) and any("bias" in n for n in spared)
        mean = {n: torch.zeros_like(p) for n, p in wanted.items()}
        square = {n: torch.zeros_like(p) for n, p in wanted.items()}
        for step in (1, 2):
            actor.train_step(lab.trajectories, lab.advantages)
            for n, w in wanted.items():
                g = named[n].main_grad.double()  # this step's; the next one clears it
                mean[n] = b1 * mean[n] + (1 - b1) * g
                square[n] = b2 * square[n] + (1 - b2) * g * g
                keep = 1.0 if n in spared else 1 - lr * decay
                moved = mean[n] / (1 - b1**step) / ((square[n] / (1 - b2**step)).sqrt() + eps)
                wanted[n] = keep * w - lr * moved
        for n, w in wanted.items():
            close(named[n].detach().double(), w, 1e-5, n)


def an_empty_share(lab: Lab) -> None:
    """Shares of a step in which nothing was sampled are left out; a step of nothing but such counts, and moves nothing."""
    silent = copy.deepcopy(lab.trajectories[:3])
    for t in silent:
        t.loss_weights = array("f", [0.0] * len(t))
    wanted = lab.actor().train_step(lab.trajectories[3:], lab.advantages[3:])
    actor = lab.actor(algorithm={"updates_per_step": 2})
    before = actor.log_probs(lab.trajectories)
    assert actor.train_step(silent, lab.advantages[:3])["loss_tokens"] == 0
    assert actor.step == 1 and actor.log_probs(lab.trajectories) == before
    # The first half of six has nothing in it: what is left is one update over the others, with their own ratios of 1.
    metrics = actor.train_step([*silent, *lab.trajectories[3:]], lab.advantages)
    assert metrics["loss_tokens"] == wanted["loss_tokens"] and metrics["loss"] == wanted["loss"]
    assert actor.step == 2 and metrics["clip_fraction"] == 0


def averages(lab: Lab) -> None:
    """A response's own mean, then the mean over responses: on policy minus the mean advantage, however long each is."""
    advantages = [1.0, 0.0, 0.5, -0.5, 2.0, 3.0]
    norms = []
    for budget in (100, 10_000):
        actor = lab.actor(algorithm={"average": "sequence"}, megatron={"tokens_per_microbatch": budget})
        metrics = actor.train_step(lab.trajectories, advantages)
        assert math.isclose(metrics["loss"], -1.0, rel_tol=1e-5)
        norms.append(metrics["grad_norm"])
    assert math.isclose(*norms, rel_tol=1e-4)


def overlapped(lab: Lab, layout: str, *, distributed: bool = True) -> None:
    """Gradients summed bucket by bucket while the backward pass goes on: the same steps but for the order in which the norm
    of the gradients is added up. One bucket is sent before any is waited for, but in
    the first step, in which megatron-core counts how often each parameter gets a gradient."""
    import functools

    import pytest
    from megatron.core.distributed import param_and_grad_buffer

    from megatron_mmsr1.megatron import model

    split = LAYOUTS[layout] | {"distributed_optimizer": distributed}
    found, events = [], list[str]()
    Group: Any = getattr(param_and_grad_buffer, "_ParamAndGradBucketGroup")  # noqa: B009 (private, but of the seam)
    small = functools.partial(model.DistributedDataParallelConfig, bucket_size=20_000)
    started, finished = Group.start_grad_sync, Group.finish_grad_sync

    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        events.append("start")
        return started(self, *args, **kwargs)

    def finish(self: Any, *args: Any, **kwargs: Any) -> Any:
        events.append("finish")
        return finished(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "DistributedDataParallelConfig", small)
        patch.setattr(Group, "start_grad_sync", start)
        patch.setattr(Group, "finish_grad_sync", finish)
        for overlap in (False, True):
            actor = lab.actor(megatron=split | {"overlap_grad_reduce": overlap}, algorithm={"kl_coef": 0.1})
            buckets = sum(len(c.bucket_groups) + len(c.expert_parallel_bucket_groups) for c in actor.model.chunks)
            assert buckets > 2 or not overlap or actor.parallel.pp_rank  # later stages have one bucket
            metrics: dict[str, float] = {}
            for step in range(3):
                events.clear()
                metrics = actor.train_step(lab.trajectories, lab.advantages)
                # One group waits for the one before it as it is sent, and is waited for once more at the end.
                assert events.count("start") == buckets and (events[0] == "start") == (overlap and step > 0), events
            found.append(({k: metrics[k] for k in ("loss", "kl", "grad_norm")}, {n: w.clone() for n, w in actor.weights()}))
    (told, weights), (other, same) = found
    assert all(math.isclose(told[k], other[k], rel_tol=1e-5, abs_tol=1e-7) for k in told), f"{told} not {other}"
    for name, w in weights.items():
        close(same[name], w, 1e-6, name)
