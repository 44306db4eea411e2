"""A policy that sees no pictures: what the trainer halves of text-only families build on.

Rotary positions are multimodal ones whose three rows are equal, which is the same as plain ones: so that packs, and positions
given by the caller, work as for every other family.
"""

# pyright: standard
# megatron.bridge and megatron.core have no types.

from __future__ import annotations

from dataclasses import fields
from typing import Any

from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.gpt_provider import GPTModelProvider

from megatron_mmsr1.models._policy import PolicyModel


class TextModel(PolicyModel):
    has_tower = False


def described(kind: type[Any], base: GPTModelProvider) -> Any:
    """megatron-bridge's description of a language model as one of `kind`."""
    values = {f.name: getattr(base, f.name) for f in fields(base) if f.init}
    # `PolicyModel` scatters the embeddings itself, once pictures would stand in them.
    ours = {"position_embedding_type": "mrope", "scatter_embedding_sequence_parallel": False}
    return kind(**(values | ours))


def as_language_model(registry: MegatronMappingRegistry) -> MegatronMappingRegistry:
    """megatron-bridge's mapping of weights for the model that stands inside of a `PolicyModel`."""
    moved = []
    for m in registry.mappings:
        theirs = m.hf_param if isinstance(m.hf_param, dict) else {"hf_param": m.hf_param}
        moved.append(type(m)(megatron_param=f"language_model.{m.megatron_param}", **theirs))
    return MegatronMappingRegistry(*moved)
