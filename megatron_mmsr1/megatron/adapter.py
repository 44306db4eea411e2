"""A policy's adapters alone, as a directory of peft's layout: adapter_config.json and adapter_model.safetensors.

megatron-bridge (0.6.2) writes such a directory too, but names the modules as a checkpoint's weights are named. Those of
Qwen2.5-VL and Qwen2-VL are not called so in transformers, where peft would leave them out with a warning; and feed-forward
layers of the vision tower have the same last names as the decoder's.
"""

# pyright: standard
# megatron.bridge has no types.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from megatron_mmsr1.config.lora import LoraConfig
from megatron_mmsr1.data import files
from megatron_mmsr1.megatron.model import Built
from megatron_mmsr1.megatron.parallel import Parallel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write(model: Built, lora: LoraConfig, source: Path, target: Path, parallel: Parallel) -> None:
    """Collective: rank 0 writes, complete or not at all. `source`: the checkpoint beside whose weights the adapters stand."""
    found: dict[str, torch.Tensor] = {}
    for name, weight in model.bridge.export_adapter_weights(model.chunks, cpu=True, show_progress=False):
        if parallel.rank == 0:
            found[name] = weight.detach().clone(memory_format=torch.contiguous_format)
    if parallel.rank == 0:
        where = decoder_name(source, model.files.family.sees_pictures)
        # All of an adapter's names go on alike: layers.0.mlp.up_proj.lora_A.weight.
        named = {f"{where}.layers.{name.partition('layers.')[2]}": weight for name, weight in found.items()}
        part = files.fresh_directory(target)
        save_file({f"base_model.model.{n}": w for n, w in named.items()}, part / WEIGHTS, metadata={"format": "pt"})
        (part / WEIGHTS).chmod(0o644)  # safetensors makes it private
        modules = sorted({name.partition(".lora_")[0] for name in named})
        (part / CONFIG).write_text(json.dumps(_described(lora, source, modules), indent=2) + "\n")
        files.replace_directory(part, target)
    parallel.barrier()


def decoder_name(source: Path, sees_pictures: bool) -> str:
    """What transformers calls the decoder inside of the checkpoint's model, as `model.language_model`."""
    kind: Any = AutoModelForImageTextToText if sees_pictures else AutoModelForCausalLM
    with torch.device("meta"):
        model: Any = kind.from_config(AutoConfig.from_pretrained(source))
    decoder = model.get_decoder()
    return next(name for name, module in model.named_modules() if module is decoder)


def _described(lora: LoraConfig, source: Path, modules: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(source.resolve()),
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
