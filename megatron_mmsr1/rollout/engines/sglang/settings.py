"""The keys of `engine:` that belong to SGLang."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from megatron_mmsr1.config import EngineConfig


class SGLangSettings(EngineConfig):
    name: str = "sglang"
    sglang: dict[str, Any] = Field(default_factory=dict, description="native server arguments, e.g. mem_fraction_static: 0.7")
