"""Small worlds for the agent's tests: pictures, prompts, a scripted engine and scripted tools."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import tiny_checkpoint
from PIL import Image

from megatron_mmsr1 import models
from megatron_mmsr1.config import ModelConfig, ProtocolConfig, RolloutConfig
from megatron_mmsr1.data.dataset import Prompt
from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.protocol import ImageHit, Prompts, TextHit
from megatron_mmsr1.rollout.context import Context
from megatron_mmsr1.rollout.engine import Generation
from megatron_mmsr1.search.wire import ImageReply, TextReply
from megatron_mmsr1.trajectory import ToolStatus


class PixelLimits(TypedDict):
    min_pixels: int
    max_pixels: int


LIMITS: PixelLimits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 64}  # as the tiny checkpoint's own processor has them
PROMPTS = Prompts("Look: <image>Question: ", "Now?", "And now?")


def picture(n: int, size: tuple[int, int] = (56, 56)) -> bytes:
    out = io.BytesIO()
    noise = random.Random(n).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).save(out, "PNG")
    return out.getvalue()


def prompt(n: int = 0, pictures: int = 1) -> Prompt:
    return Prompt(f"p{n}", f"what is {n}?", [picture(100 * n + i) for i in range(pictures)], ["x"], extra={"kind": "known"})


def context(
    search: Any = None, *, tokenizer: Any = None, rollout: RolloutConfig | None = None, tools: Any = None, **limits: Any
) -> Context:
    return Context.build(
        tokenizer or tiny_checkpoint.tokenizer(),
        prompts=PROMPTS,
        limits=ProtocolConfig(**limits),
        rollout=rollout or RolloutConfig(retries=0),
        model=ModelConfig(path="tiny", **LIMITS),
        search=search,
        store=ImageStore(None),
        family=models.get("qwen2_5_vl"),
        tools=tools,
    )


class ScriptedEngine:
    """Says what `say(turn, seed)` returns, one text a turn, and keeps what it was sent."""

    def __init__(self, tokenizer: Any, say: Callable[[int, int], str] | Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.say = say if callable(say) else lambda turn, seed: say[turn]
        self.sent: list[tuple[list[int], list[bytes], dict[str, Any]]] = []
        self.said: list[list[int]] = []

    async def generate(self, engine_ids: Sequence[int], images: Sequence[bytes], **options: Any) -> Generation:
        ids = self.tokenizer.encode(self.say(len(self.sent), options["seed"]), add_special_tokens=False)
        ids = ids[: options["max_new_tokens"]]
        stopped = ids[-1:] == self.tokenizer.encode("<|im_end|>", add_special_tokens=False)
        self.sent.append((list(engine_ids), list(images), options))
        self.said.append(ids)
        return Generation(ids, [-0.5] * len(ids), 7, "stop" if stopped else "length")


class ScriptedSearch:
    """Hits of `hits` pictures or summaries; or, for the first `failures` calls, `status` and nothing."""

    def __init__(self, *, hits: int = 2, size: int = 56, status: ToolStatus = ToolStatus.OK, failures: int = 10**9) -> None:
        self.hits, self.size, self.status, self.failures = hits, size, status, failures
        self.calls: list[str | bytes] = []

    def _ok(self) -> bool:
        return self.status is ToolStatus.OK or len(self.calls) > self.failures

    async def text(self, query: str, k: int = 5, *, call: str = "") -> TextReply:
        self.calls.append(query)
        if not self._ok():
            return TextReply(status=self.status, detail="scripted")
        return TextReply(status=ToolStatus.OK, hits=[TextHit(f"http://h/{i}", f"fact {i}") for i in range(min(k, self.hits))])

    async def image(self, data: bytes, k: int = 5, *, call: str = "") -> ImageReply:
        self.calls.append(data)
        if not self._ok():
            return ImageReply(status=self.status, detail="scripted")
        hits = [ImageHit(f"title {i}", picture(900 + i, (self.size, self.size))) for i in range(min(k, self.hits))]
        return ImageReply(status=ToolStatus.OK, hits=hits)
