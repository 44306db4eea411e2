"""Qwen2 in the trainer: megatron-core's own, under the names that a policy's language model has."""

# pyright: standard
# megatron.bridge has no types.

from __future__ import annotations

from dataclasses import dataclass

from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge
from transformers import Qwen2ForCausalLM

from megatron_mmsr1.models._text import TextBridge, TextModel, TextProvider, register


class Model(TextModel):
    """A class of its own, because megatron-bridge finds the weights' mapping by it."""


@dataclass
class Provider(TextProvider):
    model = Model


class Bridge(TextBridge, Qwen2Bridge):
    provider = Provider


register(Bridge, Qwen2ForCausalLM, "qwen2")
