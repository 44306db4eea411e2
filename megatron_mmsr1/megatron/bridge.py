"""Import megatron.bridge where there is no transformer-engine.

Version 0.6.2 imports it unconditionally for its LoRA layers, of which those that are used here (`lora.py`) need none of it. A
stub stands in its place for as long as that import takes, and is gone afterwards: nobody else may take it for the real package,
neither megatron.core, which looks for it too and decides before the stub is there, nor whoever asks what is installed.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

from megatron_mmsr1.procs import patches

NAMES = ("transformer_engine", "transformer_engine.pytorch")


def has_transformer_engine() -> bool:
    """Whether the real package is installed."""
    return "transformer_engine" in sys.modules or importlib.util.find_spec("transformer_engine") is not None


def install() -> None:
    """Import megatron.bridge, past a stub if and only if transformer-engine is absent. Idempotent."""
    if "megatron.bridge" in sys.modules or has_transformer_engine():
        return
    patches.check("bridge-without-te")
    _let_core_decide()
    root, pytorch = _module(NAMES[0], package=True), _module(NAMES[1])
    for name in ("Linear", "LayerNormLinear", "GroupedLinear", "LayerNorm", "RMSNorm"):
        setattr(pytorch, name, type(name, (), {}))
    pytorch.ops = types.SimpleNamespace(Sequential=type("Sequential", (), {}))
    root.pytorch = pytorch
    sys.modules |= {NAMES[0]: root, NAMES[1]: pytorch}
    try:
        import megatron.bridge.peft.utils as adapters
    finally:
        for name in NAMES:
            del sys.modules[name]
    # It asks whether megatron.core has names for transformer-engine's layers, which it has: they are None.
    adapters.HAVE_TE = False


def _module(name: str, *, package: bool = False) -> Any:
    module: Any = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=package)
    module.__version__ = "0.0.0"  # what megatron.core itself reports where there is none
    if package:
        module.__path__ = []
    return module


def _let_core_decide() -> None:
    import megatron.core.distributed
    import megatron.core.extensions
    import megatron.core.fp8_utils
    import megatron.core.models.gpt
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer
    import megatron.core.transformer.moe.experts
    import megatron.core.transformer.transformer_block  # noqa: F401
