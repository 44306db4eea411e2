"""What is written comes back: exports, checkpoints, the same and other layouts."""

from __future__ import annotations

import json
import shutil
from typing import Any

import torch
from safetensors.torch import load_file

from megatron_cases.harness import LAYOUTS, READABLE, Lab, auto_model, raises, same_gradients
from megatron_mmsr1.errors import UsageError

NAMES = ("loss", "grad_norm", "kl", "entropy", "lr", "logprob_diff_mean")
SCHEDULE = {"schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1}


def export_every_weight(lab: Lab, layout: str = "tp1") -> None:
    """Every live weight doubled, so that an export cannot pass by copying its source; transformers reads it."""
    actor = lab.actor(megatron=LAYOUTS[layout])
    with torch.no_grad():
        for core in actor.model.cores:
            for p in core.parameters():
                p.mul_(2.0)
    target = lab.root / f"export_{layout}"
    for _ in range(2):  # the second replaces the first
        actor.export(target)
    source = lab.root / lab.model
    found, wanted = load_file(target / "model.safetensors"), load_file(source / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n] * 2) for n in wanted)
    assert {f.name for f in target.iterdir()} == {f.name for f in source.iterdir()}
    assert not list(lab.root.glob(".export*"))
    if lab.rank == 0:
        loaded: Any = auto_model(target).from_pretrained(target, output_loading_info=True)
        info = loaded[1]
        assert not info["missing_keys"] and not info["unexpected_keys"]


def export_says_its_dtype(lab: Lab) -> None:
    """Weights trained in another precision than the source's: who loads the export by its config.json gets them as they are."""
    source = lab.root / "said_bfloat16"
    shutil.copytree(lab.root / lab.model, source, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    for section in (config, config["text_config"], config["vision_config"]):
        section["dtype"] = "bfloat16"
    (source / "config.json").write_text(json.dumps(config))
    target = lab.root / "export_dtype"
    lab.actor(path=source.name).export(target)
    kept = json.loads((target / "config.json").read_text())
    assert {kept["dtype"], kept["text_config"]["dtype"], kept["vision_config"]["dtype"]} == {"float32"}
    loaded: Any = auto_model(target).from_pretrained(target)
    wanted = load_file(target / "model.safetensors")
    assert {str(w.dtype) for w in wanted.values()} == {"torch.float32"}
    assert torch.equal(loaded.lm_head.weight, wanted["lm_head.weight"])


def freeze_groups(lab: Lab) -> None:
    """Each group, frozen alone, keeps its weights through an update, and everything else moves."""
    prefixes = {
        "tower": ("visual.patch", "visual.blocks", "visual.pos_embed"),
        "merger": ("visual.merger", "visual.deepstack_merger"),
        "language": ("model.layers", "model.norm", "lm_head"),
        "embeddings": ("model.embed_tokens",),
    }
    for group, mine in prefixes.items():
        actor = lab.actor(model={"freeze_vision": False, "freeze": [group]}, optimizer=READABLE)
        found = lab.gradients(actor)
        still = {n for n, g in found.items() if not g.any()}
        # Qwen3-VL's names have more in front: model.visual, model.language_model.layers.
        short = {n: n.replace("model.visual", "visual").replace("language_model.", "") for n in found}
        assert still == {n for n in found if short[n].startswith(mine)}, f"{group}: {sorted(still)[:5]}"


def refreshed_reference(lab: Lab, layout: str = "tp1", **sections: Any) -> None:
    """After two steps the policy is the reference, so that the third step's KL is 0, also of a run that resumes there; the
    coefficient has followed the KL."""
    moving = {"kl_coef": 0.1, "kl_target": 1e-9, "reference_interval": 2}
    settings = {"megatron": LAYOUTS[layout], "algorithm": moving, "optimizer": SCHEDULE} | sections
    actor = lab.actor(**settings)
    reports = [actor.train_step(lab.trajectories, lab.advantages) for _ in range(2)]
    assert reports[0]["kl"] == 0 and reports[1]["kl"] > 0 and actor.reference_step == 2
    # The first error is -1 and the second large: both are held to +-0.2.
    coefs = [reports[0]["kl_coef"], reports[1]["kl_coef"], actor.kl_coef]
    assert all(abs(a - b) < 1e-12 for a, b in zip(coefs, (0.1, 0.1 * 0.98, 0.1 * 0.98 * 1.02), strict=True))
    target = lab.root / f"refreshed_{layout}" / "step_000002"
    actor.save(target, {"step": 2})
    reference = actor.log_probs(lab.trajectories, "reference")
    third = [actor.train_step(lab.trajectories, lab.advantages) for _ in range(2)][1]
    assert third["kl"] > 0
    resumed = lab.actor(**settings)
    still = resumed.log_probs(lab.trajectories, "reference")
    resumed.load(target)
    assert resumed.log_probs(lab.trajectories, "reference") == reference != still
    assert (resumed.reference_step, resumed.kl_coef) == (2, coefs[2])
    again = [resumed.train_step(lab.trajectories, lab.advantages) for _ in range(2)]
    assert again[0]["kl"] == 0 and {n: again[1][n] for n in NAMES} == {n: third[n] for n in NAMES}


def exact_resume(lab: Lab, layout: str = "tp1", distributed: bool = True, name: str = "", **sections: Any) -> None:
    """Three steps in one go, or two, a checkpoint and one by another actor: the same numbers and weights, bit by bit."""
    split = LAYOUTS[layout] | {"distributed_optimizer": distributed}
    settings = {"megatron": split, "algorithm": {"kl_coef": 0.1}, "optimizer": SCHEDULE} | sections
    actor = lab.actor(**settings)
    assert actor.latest(lab.root / f"run_{name}{layout}") is None
    for _ in range(2):
        actor.train_step(lab.trajectories, lab.advantages)
    extra = {"step": 2, "sampler": {"seed": 1, "order": [3, 1, 2], 7: (1.5, None)}, "search": "abc"}
    actor.save(lab.root / f"run_{name}{layout}" / "step_000002", extra)
    third = actor.train_step(lab.trajectories, lab.advantages)
    after = torch.rand(3)
    actor.export(lab.root / f"straight_{name}{layout}")

    resumed = lab.actor(**settings)
    torch.rand(100)  # the generators come back too
    where = resumed.latest(lab.root / f"run_{name}{layout}")
    assert where is not None and where.name == "step_000002"
    assert resumed.load(where) == extra and resumed.step == 2
    again = resumed.train_step(lab.trajectories, lab.advantages)
    found, wanted = ({n: m[n] for n in NAMES} for m in (again, third))
    assert found == wanted, f"{found} not {wanted}"
    assert torch.equal(torch.rand(3), after)
    resumed.export(lab.root / f"resumed_{name}{layout}")
    a, b = (load_file(lab.root / f"{kind}_{name}{layout}" / "model.safetensors") for kind in ("straight", "resumed"))
    assert all(torch.equal(a[n], b[n]) for n in a)
    lab.keep(f"third_{name}{layout}", {n: third[n] for n in NAMES})


def plain_optimizer_elsewhere(lab: Lab) -> None:
    """Without the distributed optimizer, a checkpoint of spread experts loads where they are spread, and nowhere else."""
    plain = {"distributed_optimizer": False}
    target = lab.root / "run_plain_ep2" / "step_000001"
    lab.actor(megatron=LAYOUTS["ep2"] | plain).save(target, {"step": 1})
    with raises(UsageError, "step_000001", "another megatron.expert_parallel", "resume with the settings"):
        lab.actor(megatron=plain).load(target)


def load_elsewhere(lab: Lab, source: str, layout: str, **sections: Any) -> None:
    """A checkpoint of one layout goes on under another: the next step has the numbers that it would have had."""
    actor = lab.actor(megatron=LAYOUTS[layout], algorithm={"kl_coef": 0.1}, optimizer=SCHEDULE, **sections)
    assert actor.load(lab.root / f"run_{source}" / "step_000002")["step"] == 2
    found, wanted = actor.train_step(lab.trajectories, lab.advantages), lab.kept(f"third_{source}")
    for n in NAMES:
        assert abs(found[n] - wanted[n]) <= 1e-6 + 2e-5 * abs(wanted[n]), f"{n}: {found[n]} not {wanted[n]}"
    target = lab.root / f"moved_{layout}"
    actor.export(target)
    a, b = (load_file(d / "model.safetensors") for d in (target, lab.root / f"straight_{source}"))
    same_gradients(a, b)
