"""LoRA (arXiv 2106.09685) on a decoder's matrices: W x + alpha / rank * B (A x), with W frozen and B zero at first.

The layers are megatron-bridge's, which split A and B over tensor ranks beside W, and which its exports know. Ours are: which
modules take them, their first values, which do not depend on the layout, and the names under which a state is loaded again.
"""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.bridge.peft.lora import LoRA
from megatron.bridge.peft.lora_layers import LoRALinear
from torch import Tensor, nn

from megatron_mmsr1.config.lora import LoraConfig

# Where megatron-core has what `model.lora.targets` names, in a layer of its decoder.
PLACES = {
    "qkv_proj": ("self_attention", "linear_qkv"),
    "o_proj": ("self_attention", "linear_proj"),
    "gate_up_proj": ("mlp", "linear_fc1"),
    "down_proj": ("mlp", "linear_fc2"),
}


def add(core: Any, lora: LoraConfig, seed: int) -> None:
    """Put adapters beside the target matrices of this rank's layers. They alone of a decoder take gradients: what else does is
    for the caller to say. A is uniform in +-1 / sqrt(in), a function of seed, layer and target."""
    # A number of megatron-bridge is an int, and it only divides by it.
    maker: Any = LoRA(target_modules=[], dim=lora.rank, alpha=lora.alpha)  # pyright: ignore[reportArgumentType]
    for layer in core.decoder.layers:
        for target in lora.targets:
            part, name = PLACES[target]
            holder = getattr(layer, part)
            maker.target_modules = [name]
            wrapped = maker.transform(getattr(holder, name), name, f"decoder.layers.{layer.layer_number - 1}.{part}")
            setattr(holder, name, wrapped)
            _begin(wrapped.adapter, first(seed, layer.layer_number, target, lora.rank, _inputs(wrapped)))
            wrapped.register_load_state_dict_pre_hook(_renamed)


def _inputs(wrapped: Any) -> int:
    split = wrapped.adapter.tp_group.size() if wrapped.adapter.input_is_parallel else 1
    return wrapped.adapter.linear_in.weight.shape[1] * split


def first(seed: int, layer: int, target: str, rank: int, inputs: int) -> Tensor:
    """The whole of A, float32 [rank, inputs]."""
    digest = hashlib.sha256(f"{seed} {layer} {target}".encode()).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(rank, inputs, device="cpu").uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)


@torch.no_grad()
def _begin(adapter: Any, whole: Tensor) -> None:
    """This rank's share of A: of its inputs where those are split, else of its rows."""
    mine = whole.chunk(adapter.tp_group.size(), dim=1 if adapter.input_is_parallel else 0)[adapter.tp_group.rank()]
    adapter.linear_in.weight.copy_(mine)
    adapter.linear_out.weight.zero_()


def _renamed(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """megatron-bridge writes a wrapped matrix under the name that it had bare, and does not look for it there."""
    for name in [n for n in state if n.startswith(prefix)]:
        rest = name.removeprefix(prefix)
        if not rest.startswith(("adapter.", "to_wrap.")):
            state[f"{prefix}to_wrap.{rest}"] = state.pop(name)


def adapted(cores: list[Any]) -> list[LoRALinear]:
    """The modules that have an adapter."""
    return [m for core in cores for m in core.modules() if isinstance(m, LoRALinear)]


@contextlib.contextmanager
def left_out(cores: list[Any]) -> Iterator[None]:
    """The model as it was before: adapters add nothing."""
    found = adapted(cores)
    for m in found:
        m.disable_adapter_layers()
    try:
        yield
    finally:
        for m in found:
            m.enable_adapter_layers()
