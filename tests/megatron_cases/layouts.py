"""Numbers do not depend on how the model is split: against transformers, and against one rank."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from megatron_cases import tiny
from megatron_cases.harness import LAYOUTS, READABLE, Lab, auto_model, close, same_gradients
from megatron_mmsr1.data.images import pixel_values
from megatron_mmsr1.models import PictureRule
from megatron_mmsr1.trajectory import Trajectory


def gradients_equal_transformers(lab: Lab) -> None:
    """The loss of supervised fine-tuning by hand on transformers' model, and the update that READABLE makes of its gradient."""
    model = load_transformers(lab)
    actor = lab.actor(model={"freeze_vision": False}, algorithm={"name": "sft"}, optimizer=READABLE)
    total = torch.zeros(())
    for t in lab.trajectories:
        z = transformers_logits(lab, t, model)
        z = z.index_fill(1, torch.tensor(actor.banned), -torch.inf)
        logprobs = torch.log_softmax(z, -1)[:-1].gather(1, torch.tensor(t.token_ids[1:])[:, None]).squeeze(1)
        total = total - logprobs[torch.tensor(t.loss_mask[1:]).bool()].sum()
    loss = total / sum(sum(t.loss_mask) for t in lab.trajectories)
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(p.grad / (1 + p.grad.abs()))
    model.save_pretrained(lab.root / "updated")
    metrics = actor.train_step(lab.trajectories, None)
    assert abs(metrics["loss"] - loss.item()) < 1e-5
    actor.export(lab.root / "ours_updated")
    found, wanted = (load_file(lab.root / d / "model.safetensors") for d in ("ours_updated", "updated"))
    # transformers writes an expert's matrices the other way round than the released checkpoint that it read.
    same_gradients(found, {n: w.transpose(1, 2) if ".experts." in n else w for n, w in wanted.items()})


def transformers_logits(lab: Lab, t: Trajectory, model: Any, rule: PictureRule | None = None) -> torch.Tensor:
    rule = rule or lab.rule
    ids = torch.tensor([t.token_ids])
    images: dict[str, Any] = {}
    if t.images:
        images = {
            "pixel_values": torch.cat([torch.from_numpy(pixel_values(lab.store.get(i.sha256), rule)) for i in t.images]),
            "image_grid_thw": torch.tensor([i.grid_thw for i in t.images]),
            "mm_token_type_ids": (ids == tiny.ID["<|image_pad|>"]).int(),
        }
    return model(input_ids=ids, **images).logits[0]


def load_transformers(lab: Lab) -> Any:
    path = lab.root / lab.model
    return auto_model(path).from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def logits_equal_transformers(lab: Lab) -> None:
    model = load_transformers(lab)
    with torch.no_grad():
        wanted = [transformers_logits(lab, t, model) for t in lab.trajectories]
    lab.keep("logits", wanted)
    found = lab.actor().logits(lab.trajectories)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        close(a, b, 1e-4, f"logits of conversation {i}")


def own_family(lab: Lab) -> None:
    """A person's family from a file, of other picture statistics: the trainer shows the tower those pixels."""
    file = lab.root / "grey.py"
    file.write_text(
        "from dataclasses import replace\nfrom megatron_mmsr1 import models\nfrom megatron_mmsr1.models import PictureRule\n"
        "FAMILY = replace(models.get('qwen2_5_vl'), pictures=PictureRule(mean=(0.5,) * 3, deviation=(0.25,) * 3))\n"
    )
    rule = PictureRule(mean=(0.5, 0.5, 0.5), deviation=(0.25, 0.25, 0.25))
    model = load_transformers(lab)
    found = lab.actor(model={"family": f"{file}:FAMILY"}).logits(lab.trajectories)
    with torch.no_grad():
        for t, z in zip(lab.trajectories, found, strict=True):
            close(z, transformers_logits(lab, t, model, rule), 1e-4, "logits")
    assert (found[0] - lab.kept("logits")[0]).abs().max() > 1e-3, "these statistics must make a difference"


def log_probs_equal_transformers(lab: Lab) -> None:
    """Position t holds the log-prob of token t given those before it, vision tokens neither asked for nor in the sum."""
    actor = lab.actor()
    found = actor.log_probs(lab.trajectories)
    for t, values, z in zip(lab.trajectories, found, lab.kept("logits"), strict=True):
        z = z.clone()
        z[:, actor.banned] = -torch.inf
        wanted = torch.log_softmax(z, -1)[:-1].gather(1, torch.tensor(t.token_ids[1:])[:, None]).squeeze(1)
        wanted = torch.where(wanted.isinf(), 0.0, wanted)
        assert len(values) == len(t) and values[0] == 0.0
        close(torch.tensor(values[1:]), wanted, 1e-4, "log-probs")


def baseline_gradients(lab: Lab) -> None:
    """One rank's gradients, the vision tower's too."""
    actor = lab.actor(model={"freeze_vision": False}, optimizer=READABLE)
    found = lab.gradients(actor)
    assert all(g.abs().max() > 0 for n, g in found.items() if "visual" in n or "layers" in n)
    lab.keep("gradients", found)


def baseline(lab: Lab) -> None:
    """One rank's gradients and metrics of three real steps, for the other layouts."""
    baseline_gradients(lab)
    lab.keep("steps", _steps(lab, {}))
    lab.keep("selected", _selected(lab, {}))


def baseline_weights(lab: Lab) -> None:
    lab.keep("weights", _weights_after_steps(lab, "tp1"))


def tied_baseline(lab: Lab) -> None:
    lab.keep("tied", lab.gradients(lab.actor(path="tied", optimizer=READABLE)))


def _steps(lab: Lab, megatron: dict[str, Any]) -> list[dict[str, float]]:
    actor = lab.actor(megatron=megatron, algorithm={"kl_coef": 0.1, "entropy_coef": 0.01})
    return [actor.train_step(lab.trajectories, lab.advantages) for _ in range(3)]


def logits_and_gradients(lab: Lab, layout: str) -> None:
    actor = lab.actor(megatron=LAYOUTS[layout], model={"freeze_vision": False}, optimizer=READABLE)
    for i, (a, b) in enumerate(zip(actor.logits(lab.trajectories), lab.kept("logits"), strict=True)):
        close(a, b, 1e-4, f"logits of conversation {i}")
    same_gradients(lab.gradients(actor), lab.kept("gradients"))


def shares(lab: Lab, layout: str) -> None:
    """A rank that holds whole trajectories of its own share only, and outlines of the others, computes the same step."""
    actor = lab.actor(megatron=LAYOUTS[layout], model={"freeze_vision": False}, optimizer=READABLE)
    owners = actor.owners(lab.trajectories)
    mine = [t if owner == actor.parallel.dp_rank else t.outline() for t, owner in zip(lab.trajectories, owners, strict=True)]
    assert set(owners) == set(range(actor.parallel.dp_size))
    same_gradients(lab.gradients(actor, mine), lab.kept("gradients"))


def steps(lab: Lab, layout: str) -> None:
    """Three steps of Adam with a KL term: Adam divides by the gradient's size, so rounding is enlarged where it is near 0."""
    _compare_steps(_steps(lab, LAYOUTS[layout]), lab.kept("steps"))


def _weights_after_steps(lab: Lab, layout: str) -> dict[str, torch.Tensor]:
    """Of three steps of Adam whose eps is above what rounding leaves of gradients that are 0 (a key's bias has such)."""
    actor = lab.actor(megatron=LAYOUTS[layout], optimizer={"lr": 1e-2, "eps": 1e-4}, model={"freeze_vision": False})
    for _ in range(3):
        actor.train_step(lab.trajectories, lab.advantages)
    target = lab.root / f"stepped_{layout}"
    actor.export(target)
    return load_file(target / "model.safetensors")


def weights_after_steps(lab: Lab, layout: str) -> None:
    found, wanted = _weights_after_steps(lab, layout), lab.kept("weights")
    before = load_file(lab.root / lab.model / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert (wanted[name] - before[name]).abs().max() > 1e-3, f"{name} has not moved"
        close(found[name], wanted[name], 1e-5, name)


def _compare_steps(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    names = ("loss", "pg_loss", "kl", "entropy", "clip_fraction", "grad_norm", "logprob_diff_mean", "logprob_diff_max")
    names += ("engine_k1", "engine_k3", "correction_mean", "correction_clipped", "correction_ess")
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        for name in names:
            assert abs(a[name] - b[name]) <= 1e-6 + 2e-5 * abs(b[name]), f"step {i} {name}: {a[name]} not {b[name]}"


def _selected(lab: Lab, megatron: dict[str, Any]) -> list[dict[str, float]]:
    """Steps of two updates each, in which the policy loss selects of all tokens of an update, every token has an advantage of
    its own, and the correction reads the advantages."""
    loss = {"name": "kl_cov", "share": 0.2, "coef": 5.0}
    settings = {"policy_loss": loss, "correction": "opsm", "updates_per_step": 2, "kl_coef": 0.1, "kl_in": "reward"}
    actor = lab.actor(megatron=megatron, algorithm=settings)
    tokens = [torch.linspace(a, a + 1, t.sampled_tokens) for a, t in zip(lab.advantages, lab.trajectories, strict=True)]
    return [actor.train_step(lab.trajectories, tokens) for _ in range(2)]


def selected(lab: Lab, layout: str) -> None:
    _compare_steps(_selected(lab, LAYOUTS[layout]), lab.kept("selected"))


def tied(lab: Lab, layout: str) -> None:
    """With tied embeddings, both ends of the pipeline hold one weight and must add up its gradients."""
    actor = lab.actor(path="tied", megatron=LAYOUTS[layout], optimizer=READABLE)
    same_gradients(lab.gradients(actor), lab.kept("tied"))


def packed_equals_unpacked(lab: Lab) -> None:
    for budget in (2, 60, 10_000):
        actor = lab.actor(megatron={"tokens_per_microbatch": budget}, model={"freeze_vision": False}, optimizer=READABLE)
        same_gradients(lab.gradients(actor), lab.kept("gradients"))


ADVANTAGES = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.25, -0.25]


def group_alone(lab: Lab) -> None:
    """Groups of which every trajectory stands whole in its pack, for those that share what they begin with."""
    groups = tiny.groups(lab.store, lab.rule)
    actor = lab.actor(megatron={"share_prefixes": False}, model={"freeze_vision": False}, optimizer=READABLE)
    lab.keep("group_logits", actor.logits(groups))
    lab.keep("group_log_probs", actor.log_probs(groups))
    lab.keep("group_gradients", lab.gradients(actor, groups, advantages=ADVANTAGES))


def shared_prefixes(lab: Lab, megatron: dict[str, Any] | None = None) -> None:
    groups = tiny.groups(lab.store, lab.rule)
    sections = {
        "megatron": (megatron or {}) | {"share_prefixes": True, "tokens_per_microbatch": 400},
        "model": {"freeze_vision": False},
    }
    actor = lab.actor(**sections, optimizer=READABLE)
    # Of each group: system 20, prompt 1 + (1 + 6 + 1) + 12, turn 10, observation 1 + (1 + 4 + 1) + 12, own ends 5, 8 and 21.
    assert sum(map(len, groups)) == 2 * (4 * 41 + 2 * 29 + 5 + 8 + 2 * 21)
    if actor.parallel.dp_size == 1:  # both groups in one micro-batch; their prompts begin alike until the picture's first pad
        assert [b.computed for b in actor.micro_batches(groups)] == [2 * (41 + 29 + 5 + 8 + 21) - 22]
    for a, b in zip(actor.logits(groups), lab.kept("group_logits"), strict=True):
        close(a, b, 1e-5, "logits")
    for a, b in zip(actor.log_probs(groups), lab.kept("group_log_probs"), strict=True):
        close(torch.tensor(a), torch.tensor(b), 1e-5, "log-probs")
    same_gradients(lab.gradients(actor, groups, advantages=ADVANTAGES), lab.kept("group_gradients"))


def plain_optimizer(lab: Lab, layout: str) -> None:
    """Without the distributed optimizer, the same three steps."""
    _compare_steps(_steps(lab, LAYOUTS[layout] | {"distributed_optimizer": False}), lab.kept("steps"))


def recompute(lab: Lab, mode: str, layout: str = "tp1") -> None:
    actor = lab.actor(megatron=LAYOUTS[layout] | {"recompute": mode}, model={"freeze_vision": False}, optimizer=READABLE)
    same_gradients(lab.gradients(actor), lab.kept("gradients"))


def offloaded_inputs(lab: Lab) -> None:
    """The gradients of full recompute, to the bit, with the input of each layer and micro-batch on the host meanwhile."""
    import pytest

    from megatron_mmsr1.megatron import offload

    sections = {"model": {"freeze_vision": False}, "optimizer": READABLE}
    sent: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        to_host = offload.to_host
        patch.setattr(offload, "to_host", lambda x: sent.append(tuple(x.shape)) or to_host(x).clone())
        actor = lab.actor(megatron={"recompute": "full", "offload": {"activations": True}}, **sections)
        found = lab.gradients(actor)
    packs = actor.micro_batches(lab.trajectories)
    layers, hidden = actor.model.config.num_layers, actor.model.config.hidden_size
    assert sorted(sent) == sorted((b.padded, 1, hidden) for b in packs for _ in range(layers))
    wanted = lab.gradients(lab.actor(megatron={"recompute": "full"}, **sections))
    assert found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


def one_sequence(lab: Lab, layout: str) -> None:
    """A rank without work runs fillers and changes nothing."""
    single = lab.trajectories[3:4]
    found = lab.gradients(lab.actor(megatron=LAYOUTS[layout], optimizer=READABLE), single)
    assert max(g.abs().max().item() for g in found.values()) > 0
    many = lab.gradients(lab.actor(megatron=LAYOUTS[layout], optimizer=READABLE), single * 4, advantages=[1.0] * 4)
    same_gradients(found, many)
