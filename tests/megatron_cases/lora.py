"""Adapters of low rank: against transformers with W + alpha / rank * B A written out, and against one rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from megatron_cases.harness import LAYOUTS, READABLE, Lab, auto_model, close, raises, same_gradients
from megatron_cases.layouts import transformers_logits
from megatron_mmsr1.errors import UsageError

RANK, ALPHA, STEPS = 4, 6.0, 3
LORA = {"rank": RANK, "alpha": ALPHA}
# Adam whose eps is above what rounding leaves of a gradient: its first steps else have the gradient's sign alone.
ADAM = {"lr": 2e-2, "eps": 1e-3, "betas": [0.9, 0.95], "clip_grad": 0.0, "weight_decay": 0.0}
# By target: the modules of transformers' decoder layer that megatron-core has as one, with one A.
TARGETS = {
    "qkv_proj": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "o_proj": ("self_attn", ("o_proj",)),
    "gate_up_proj": ("mlp", ("gate_proj", "up_proj")),
    "down_proj": ("mlp", ("down_proj",)),
}


class Written(nn.Module):
    """W -> W + alpha / rank * B A."""

    def __init__(self, a: nn.Parameter, rows: int) -> None:
        super().__init__()
        self.a, self.b = a, nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ALPHA / RANK * self.b @ self.a


def by_hand(lab: Lab, model: Any, targets: tuple[str, ...], first: Any) -> dict[str, Tensor]:
    """`STEPS` of supervised fine-tuning of transformers' model; its weights then, merged. `first(layer, target, inputs)`: A."""
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for i, layer in enumerate(decoder_layers(model)):
        for target in targets:
            part, names = TARGETS[target]
            modules = [getattr(getattr(layer, part), n) for n in names]
            a = nn.Parameter(first(i + 1, target, modules[0].in_features))
            trained.append(a)
            for m in modules:
                written = Written(a, m.out_features)
                parametrize.register_parametrization(m, "weight", written)
                trained.append(written.b)
    optimizer = torch.optim.AdamW(trained, lr=ADAM["lr"], betas=(0.9, 0.95), eps=ADAM["eps"], weight_decay=0.0)
    banned = torch.tensor(lab.kept("banned"))
    for _ in range(STEPS):
        total = torch.zeros(())
        for t in lab.trajectories:
            z = transformers_logits(lab, t, model).index_fill(1, banned, -torch.inf)
            logprobs = torch.log_softmax(z, -1)[:-1].gather(1, torch.tensor(t.token_ids[1:])[:, None]).squeeze(1)
            total = total - logprobs[torch.tensor(t.loss_mask[1:]).bool()].sum()
        loss = total / sum(sum(t.loss_mask) for t in lab.trajectories)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for m in list(model.modules()):
        if parametrize.is_parametrized(m, "weight"):
            parametrize.remove_parametrizations(m, "weight", leave_parametrized=True)
    target = lab.root / f"{lab.model}_lora_by_hand"
    model.save_pretrained(target)
    return load_file(target / "model.safetensors")


def decoder_layers(model: Any) -> Iterator[Any]:
    inner = getattr(model.model, "language_model", model.model)
    yield from inner.layers


def trained(lab: Lab, layout: str, targets: tuple[str, ...] = tuple(TARGETS), **megatron: Any) -> Any:
    """An actor after `STEPS` of supervised fine-tuning."""
    model = {"lora": LORA | {"targets": list(targets)}}
    actor = lab.actor(model=model, megatron=LAYOUTS[layout] | megatron, algorithm={"name": "sft"}, optimizer=ADAM)
    for _ in range(STEPS):
        actor.train_step(lab.trajectories, None)
    return actor


def equals_transformers(lab: Lab, targets: tuple[str, ...] = tuple(TARGETS)) -> None:
    """The merged weights after three steps are those of the same by hand."""
    from megatron_mmsr1.megatron.lora import first

    path = lab.root / lab.model
    model: Any = auto_model(path).from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    lab.keep("banned", lab.actor().banned)
    lab.keep("lora_by_hand", by_hand(lab, model, targets, lambda layer, target, n: first(0, layer, target, RANK, n)))
    same_weights(lab, "tp1", targets)


def same_weights(lab: Lab, layout: str, targets: tuple[str, ...] = tuple(TARGETS), **megatron: Any) -> None:
    """In any layout. Nothing else than adapters has a gradient, and so a place in the optimizer."""
    from megatron_mmsr1.megatron.lora import adapted

    actor = trained(lab, layout, targets, **megatron)
    count = sum(p.numel() for core in actor.model.cores for p in core.parameters() if p.requires_grad)
    assert count == sum(p.numel() for m in adapted(actor.model.cores) for p in m.adapter.parameters()) > 0
    target = lab.root / f"{lab.model}_lora_{layout}"
    actor.export(target)
    found, wanted = load_file(target / "model.safetensors"), lab.kept("lora_by_hand")
    before = load_file(lab.root / lab.model / "model.safetensors")
    assert found.keys() == wanted.keys() == before.keys()
    moved = tuple(f".{n}.weight" for t in targets for n in TARGETS[t][1])
    for name in wanted:
        if name.endswith(moved) and "visual" not in name:
            assert (found[name] - before[name]).abs().max() > 1e-3, name
            close(found[name], wanted[name], 2e-5, name)
        else:
            assert torch.equal(found[name], before[name]), name


def merged_and_alone(lab: Lab, layout: str) -> None:
    """The exported model and what is pushed to engines is W + alpha / rank * B A to the bit, A and B being those of the
    directory for peft; read here as peft reads it: base_model.model.MODULE.lora_A.weight, by transformers' modules."""
    from megatron_mmsr1.megatron import adapter

    actor, source = trained(lab, layout), lab.root / lab.model
    target = lab.root / f"{lab.model}_adapter_{layout}"
    adapter.write(actor.model, actor.cfg.model.lora, source, target, actor.parallel)
    pushed = dict(actor.weights())
    actor.export(lab.root / f"{lab.model}_merged_{layout}")
    merged = load_file(lab.root / f"{lab.model}_merged_{layout}" / "model.safetensors")
    assert merged.keys() == pushed.keys() and all(torch.equal(merged[n], pushed[n]) for n in merged)
    config = json.loads((target / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["lora_dropout"]) == ("LORA", RANK, int(ALPHA), 0.0)
    assert config["base_model_name_or_path"] == str(source) and not config["use_rslora"] and config["bias"] == "none"
    weights = load_file(target / "adapter_model.safetensors")
    assert {n.rpartition(".lora_")[0] for n in weights} == {f"base_model.model.{n}" for n in config["target_modules"]}
    model: Any = auto_model(source).from_pretrained(source, dtype=torch.float32)
    wanted: Any = auto_model(source).from_pretrained(lab.root / f"{lab.model}_merged_{layout}", dtype=torch.float32)
    for name in config["target_modules"]:
        a, b = (weights[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert a.shape[0] == b.shape[1] == RANK and b.any()
        whole = model.get_submodule(name).weight
        assert torch.equal(whole + ALPHA / RANK * (b @ a), wanted.get_submodule(name).weight), name
        whole.data = wanted.get_submodule(name).weight.data
    same, state = model.state_dict(), wanted.state_dict()
    assert all(torch.equal(same[n], state[n]) for n in state)


def first_is_base(lab: Lab, layout: str) -> None:
    """A policy begins equal to its base, with the same A in every layout."""
    base = lab.actor(megatron=LAYOUTS[layout]).log_probs(lab.trajectories)
    found = lab.actor(model={"lora": LORA}, megatron=LAYOUTS[layout])
    assert found.log_probs(lab.trajectories) == base
    names = found.model.bridge.export_adapter_weights(found.model.chunks, cpu=True, show_progress=False)
    drawn = {n: w.clone() for n, w in names if "lora_A" in n}
    if layout == "tp1":
        lab.keep("lora_first", drawn)
    wanted = lab.kept("lora_first")
    assert drawn.keys() == wanted.keys() and all(torch.equal(drawn[n], wanted[n]) for n in drawn)
    a = drawn["model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert 0.9 / 8 < a.abs().max() <= 1 / 8  # +-1 / sqrt(64)
    assert len({tuple(w.flatten()[:3].tolist()) for w in drawn.values()}) == 4 * 4  # q, k, v have one, gate and up


def reference(lab: Lab, layout: str) -> None:
    """The reference is the same model with its adapters off: one model is built, and its log-probs are the base's."""
    from megatron_mmsr1.megatron import actor as module

    built: list[Any] = []
    build = module.build

    def counted(*args: Any, **options: Any) -> Any:
        built.append(build(*args, **options))
        return built[-1]

    settings: dict[str, Any] = {"megatron": LAYOUTS[layout], "algorithm": {"kl_coef": 0.1}}
    base = lab.actor(**settings).log_probs(lab.trajectories, "reference")
    module.build = counted
    try:
        actor = lab.actor(model={"lora": LORA}, **settings, optimizer={"lr": 1e-2})
        assert len(built) == 1 and actor.reference.model is actor.model
        reports = [actor.train_step(lab.trajectories, lab.advantages) for _ in range(2)]
        assert reports[0]["kl"] == 0 < reports[1]["kl"]
        assert actor.log_probs(lab.trajectories, "reference") == base
        assert actor.log_probs(lab.trajectories) != base  # they are on again
        for model, more in (({"freeze_vision": False}, {}), ({}, {"reference_interval": 2})):
            built.clear()
            other = lab.actor(model={"lora": LORA} | model, megatron=LAYOUTS[layout], algorithm={"kl_coef": 0.1} | more)
            assert len(built) == 2 and other.log_probs(lab.trajectories, "reference") == base
    finally:
        module.build = build


def other_adapters(lab: Lab) -> None:
    """A checkpoint is refused where there are no adapters, or others."""
    target = lab.root / "run_lora_refused" / "step_000000"
    lab.actor(model={"lora": LORA}).save(target, {})
    for lora in (None, LORA | {"rank": 2}):
        with raises(UsageError, "step_000000", "model.lora={'rank': 4", "which is", "Resume with the settings"):
            lab.actor(model={"lora": lora}).load(target)
    with raises(UsageError, "gate_up_proj, down_proj", "a mixture", "model.lora.targets=[qkv_proj, o_proj]"):
        lab.actor(path="qwen3_vl_moe", model={"lora": LORA})


def beside_a_trained_tower(lab: Lab, layout: str = "tp1", **megatron: Any) -> None:
    """At first, with B zero, the tower and its merger have the gradients that they have without adapters; the language model's
    own weights have none."""
    settings: dict[str, Any] = {"megatron": LAYOUTS[layout] | megatron, "optimizer": READABLE}
    found = lab.gradients(lab.actor(model={"lora": LORA, "freeze_vision": False}, **settings))
    wanted = {n: g for n, g in lab.kept("gradients").items() if "visual" in n}
    same_gradients({n: found[n] for n in wanted}, wanted)
    moved = {n.rsplit(".", 2)[-2] for n, g in found.items() if n not in wanted and g.any()}
    assert moved == {name for _, names in TARGETS.values() for name in names}


def bfloat16(lab: Lab) -> None:
    """bfloat16 adapters with float32 masters: near float32's first loss, and they learn what they are told to."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        actor = lab.actor(model={"lora": LORA, "dtype": dtype}, algorithm={"name": "sft"}, optimizer={"lr": 1e-2})
        losses[dtype] = [actor.train_step(lab.trajectories, None)["loss"] for _ in range(8)]
    assert abs(losses["bfloat16"][0] - losses["float32"][0]) < 0.02
    assert losses["bfloat16"][-1] < 0.9 * losses["bfloat16"][0]
    assert {p.dtype for m in actor.model.cores for p in m.parameters() if p.requires_grad} == {torch.bfloat16}
