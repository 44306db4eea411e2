"""Bad input is refused by name."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from megatron_cases import tiny
from megatron_cases.harness import Lab, raises
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.trajectory import ImageRef


def settings(lab: Lab) -> None:
    from megatron_mmsr1.config import parse
    from megatron_mmsr1.megatron.actor import MegatronActor

    for provider, words in (
        ({"attention_dropuot": 0.1}, ("megatron.provider.attention_dropuot", "did you mean attention_dropout")),
        ({"sequence_parallel": True}, ("megatron.provider.sequence_parallel", "megatron.sequence_parallel")),
        ({"fp8": "e4m3"}, ("megatron.provider.fp8", "megatron.fp8")),
        ({"fine_grained_activation_offloading": True}, ("megatron.provider.fine_grained", "megatron.offload")),
    ):
        with raises(UsageError, *words):
            lab.actor(megatron={"provider": provider})
    for megatron, words in (
        ({"attention": "varlen"}, ("megatron.attention=varlen cannot be here", "no CUDA device", "What can: padded")),
        ({"fp8": "current"}, ("megatron.fp8=current cannot be here", "transformer-engine is not installed")),
    ):
        with raises(UsageError, *words):
            lab.actor(megatron=megatron)
    raw: dict[str, Any] = lab.config().model_dump()
    raw["train"]["ranks"] = raw["data"]["prompts_per_step"] = 3
    with raises(UsageError, "train.ranks=3", "1 processes"):
        MegatronActor(parse(raw), lab.store, total_steps=1)


def _copy(lab: Lab, name: str) -> Path:
    target = lab.root / name
    shutil.copytree(lab.root / "tiny", target)
    return target


def checkpoints(lab: Lab) -> None:
    with raises(UsageError, "model.path", "nowhere"):
        lab.actor(path="nowhere")
    other = _copy(lab, "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    with raises(UsageError, "LlamaForCausalLM", "Qwen2_5_VL"):
        lab.actor(path="other")
    scaled = _copy(lab, "scaled")
    config["text_config"]["rope_parameters"] |= {"rope_type": "yarn", "factor": 2.0}
    (scaled / "config.json").write_text(json.dumps(config))
    with raises(UsageError, "model.path", "scales rotary positions (yarn)"):
        lab.actor(path="scaled")
    sharded = _copy(lab, "sharded")
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    index = {n: "model-00001-of-00002.safetensors" for n in weights} | {"lm_head.weight": "model-00002-of-00002.safetensors"}
    save_file({n: w for n, w in weights.items() if n != "lm_head.weight"}, sharded / "model-00001-of-00002.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with raises(RunError, "model-00002-of-00002.safetensors is missing"):
        lab.actor(path="sharded")
    torn = _copy(lab, "torn")
    data = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(data[: len(data) // 2])
    with raises(RunError, "torn/model.safetensors", "damaged"):
        lab.actor(path="torn")
    partial = _copy(lab, "partial")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, partial / "model.safetensors")
    with raises(RunError, "partial", "model.layers.1.mlp.up_proj.weight"):
        lab.actor(path="partial")


def trajectories(lab: Lab) -> None:
    actor = lab.actor()
    good = lab.trajectories[:1]

    def broken(**change: Any) -> list[Any]:
        t = copy.deepcopy(good[0])
        for k, v in change.items():
            setattr(t, k, v)
        return [t]

    with raises(UsageError, "an advantage for each of 1"):
        actor.train_step(good, None)
    with raises(UsageError, "p0#0", "logprobs"):
        actor.train_step(broken(logprobs=[0.0]), [1.0])
    with raises(UsageError, "p0#0", "vocabulary of 320"):
        actor.train_step(broken(token_ids=[*good[0].token_ids[:-1], 320]), [1.0])
    with raises(UsageError, "p0#0", "image pads"):
        actor.train_step(broken(images=[]), [1.0])
    said = broken(token_ids=[*good[0].token_ids[:-1], tiny.ID["<|vision_start|>"]])
    with raises(UsageError, "p0#0", "vision token"):
        actor.train_step(said, [1.0])
    gone = ImageRef("0" * 64, good[0].images[0].grid_thw)
    with raises(RunError, "0" * 64):
        actor.train_step(broken(images=[gone, *good[0].images[1:]]), [1.0])


def torn_training_checkpoint(lab: Lab) -> None:
    actor = lab.actor()
    parent = lab.root / "run_torn"
    actor.save(parent / "step_000001", {"step": 1})
    shard = next(f for f in (parent / "step_000001").iterdir() if f.suffix == ".distcp")
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    with raises(RunError, shard.name, "torn", "latest"):
        actor.load(parent / "step_000001")
    shard.unlink()
    with raises(RunError, shard.name, "missing"):
        actor.load(parent / "step_000001")
    with raises(RunError, "manifest.json"):
        actor.load(parent / "step_000009")
    (parent / "latest").write_text("step_000009")
    with raises(RunError, "latest", "step_000009"):
        actor.latest(parent)


def other_optimizer(lab: Lab) -> None:
    """Without the distributed optimizer's state there is a KeyError deep in megatron-core; it is refused by its setting."""
    parent = lab.root / "run_toggled"
    lab.actor().save(parent / "step_000001", {"step": 1})
    with raises(UsageError, "step_000001", "megatron.distributed_optimizer=true", "false here"):
        lab.actor(megatron={"distributed_optimizer": False}).load(parent / "step_000001")


def freeze(lab: Lab) -> None:
    with raises(UsageError, "model.freeze", "qwen2_5_vl has no eyes", "merger"):
        lab.actor(model={"freeze": ["eyes"]})
    with raises(UsageError, "model.freeze", "nothing to train"):
        lab.actor(model={"freeze": ["language", "embeddings"]})


def layout(lab: Lab) -> None:
    with raises(UsageError, "tensor_parallel=4", "2 key-value heads"):
        lab.actor(megatron={"tensor_parallel": 4})


def deepstack_layout(lab: Lab) -> None:
    """Four layers over four stages leave the tower's stage one of the two that take its inner features."""
    with raises(UsageError, "pipeline_parallel=4", "4 layers are too few for 4 chunks", "first 2 layers", "use fewer stages"):
        lab.actor(megatron={"pipeline_parallel": 4})


def moe_layout(lab: Lab) -> None:
    with raises(UsageError, "tensor_parallel=2", "set megatron.sequence_parallel: true"):
        lab.actor(megatron={"tensor_parallel": 2})


def moe_models(lab: Lab) -> None:
    """Mixtures that the trainer cannot build, or could misread."""
    for key, value, words in (("mlp_only_layers", [0], "dense layers among"), ("moe_intermediate_size", 32, "are square")):
        path = lab.root / f"{lab.model}_{key}"
        shutil.copytree(lab.root / lab.model, path)
        config = json.loads((path / "config.json").read_text())
        config["text_config"][key] = value
        (path / "config.json").write_text(json.dumps(config))
        with raises(UsageError, "model.path", words):
            lab.actor(path=path.name)
    with raises(UsageError, "moe_aux_loss_coeff", "no load-balancing loss"):
        lab.actor(megatron={"provider": {"moe_aux_loss_coeff": 0.001}})
