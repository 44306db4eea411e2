"""Import megatron.bridge where there is no transformer-engine.

Version 0.6.2 imports it unconditionally for LoRA layers that this project does not use. megatron.core looks for it too and
must decide first that there is none, else it would build layers from the stub.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

VERSION = "2.20.2"  # the release that pyproject.toml's `gpu` extra pins; bridge parses a version at import


def has_transformer_engine() -> bool:
    """Whether the real package is installed; false for the stub."""
    module = sys.modules.get("transformer_engine")
    if module is not None:
        return not getattr(module, "is_stub", False)
    return importlib.util.find_spec("transformer_engine") is not None


def install() -> None:
    """Put the stub in place, if and only if transformer-engine is absent. Idempotent."""
    if "transformer_engine" in sys.modules or has_transformer_engine():
        return
    _let_core_decide()
    root, pytorch = _module("transformer_engine", package=True), _module("transformer_engine.pytorch")
    for name in ("Linear", "LayerNormLinear", "GroupedLinear", "LayerNorm", "RMSNorm"):
        setattr(pytorch, name, type(name, (), {}))
    pytorch.ops = types.SimpleNamespace(Sequential=type("Sequential", (), {}))
    root.pytorch = pytorch
    sys.modules |= {"transformer_engine": root, "transformer_engine.pytorch": pytorch}
    real = importlib.metadata.version

    def version(name: str) -> str:
        return VERSION if name.replace("_", "-") == "transformer-engine" else real(name)

    metadata: Any = importlib.metadata
    metadata.version = version


def _module(name: str, *, package: bool = False) -> Any:
    module: Any = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=package)
    module.__version__ = VERSION
    module.is_stub = True
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
