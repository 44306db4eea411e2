"""How prompts, calls, observations and answers look as text. Rollout, SFT, evaluation, gateway and demo all render and parse
here, so training and serving cannot drift.

`get(name)` gives a protocol: `mmsearch` (MMSearch-R1's tags), `hermes` (the tool-call JSON of Qwen and Hermes), or a person's
own. The functions beside it speak the first one.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from megatron_mmsr1.plugins.registry import Registry, requires
from megatron_mmsr1.plugins.settings import options_for
from megatron_mmsr1.protocol.actions import (
    Action,
    Answer,
    Call,
    GiveUp,
    ImageSearch,
    Invalid,
    TextSearch,
    call,
    last_answer,
    strip_end,
)
from megatron_mmsr1.protocol.base import CallForm, Observed, TurnProtocol
from megatron_mmsr1.protocol.mmsearch import GIVE_UP, IMAGE_SEARCH, failed_message, tool_message
from megatron_mmsr1.protocol.prompts import Prompts
from megatron_mmsr1.protocol.results import (
    IMAGE_RESULTS,
    SEARCH_FAILED,
    TEXT_RESULTS,
    ImageHit,
    TextHit,
    image_observation,
    text_observation,
)
from megatron_mmsr1.protocol.segments import (
    IM_END,
    IM_START,
    IMAGE,
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    VISION_TOKENS,
    Segment,
    Tokenizer,
    banned_ids,
    clean,
    data,
    encode,
    text,
)

__all__ = [
    "GIVE_UP",
    "IMAGE",
    "IMAGE_PAD",
    "IMAGE_RESULTS",
    "IMAGE_SEARCH",
    "IM_END",
    "IM_START",
    "REGISTRY",
    "SEARCH_FAILED",
    "TEXT_RESULTS",
    "VISION_END",
    "VISION_START",
    "VISION_TOKENS",
    "Action",
    "Answer",
    "Call",
    "CallForm",
    "GiveUp",
    "ImageHit",
    "ImageSearch",
    "Invalid",
    "Observed",
    "Prompts",
    "Segment",
    "TextHit",
    "TextSearch",
    "Tokenizer",
    "TurnProtocol",
    "banned_ids",
    "call",
    "clean",
    "data",
    "encode",
    "failed_message",
    "first_message",
    "get",
    "image_observation",
    "last_answer",
    "parse_action",
    "strip_end",
    "text",
    "text_observation",
    "tool_message",
]


def _check(name: str, part: Any) -> list[str]:
    if not (isinstance(part, type) and issubclass(part, TurnProtocol)):
        return ["it must be a subclass of megatron_mmsr1.protocol.TurnProtocol"]
    missing = sorted(part.__abstractmethods__)
    return ([f"it does not define {', '.join(missing)}"] if missing else []) + requires()(name, part)


REGISTRY: Registry[type[TurnProtocol]] = Registry("protocol", __name__, "PROTOCOL", key="protocol.name", check=_check)


def get(name: str, tools: Sequence[CallForm] | None = None, **options: Any) -> TurnProtocol:
    """The protocol of this name, which speaks of `tools` (default: all that ship). `options`: its own settings.

    Raises UsageError for an unknown name or option, and for a person's own that breaks the contract.
    """
    part = REGISTRY.get(name)
    # By name: the tools' room imports this one.
    known: Sequence[CallForm] = importlib.import_module("megatron_mmsr1.tools").shipped() if tools is None else tools
    return part(known, options_for(part, options, "protocol.options"))


@cache
def _default() -> TurnProtocol:
    return get("mmsearch")


def parse_action(text: str) -> Action:
    """The one action of an assistant turn, in MMSearch-R1's tags and those of the tools that ship."""
    return _default().parse(text)


def first_message(prompts: Prompts, question: str, n_images: int) -> list[Segment]:
    """MMSearch-R1's first prompt, up to and including the assistant's opening."""
    return _default().first_message(prompts, question, n_images)
