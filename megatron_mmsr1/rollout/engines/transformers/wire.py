"""What client and server of the transformers engine say to each other."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import orjson

from megatron_mmsr1.rollout.engines.base import Turn
from megatron_mmsr1.rollout.generation import EngineError, Generation, OnTokens


class TransformersWire:
    """See `base.Wire`. A stream is one JSON object a line: {"new": [ids]} as they are sampled, then the answer."""

    generate_path = "/turn"
    health_path = "/health"

    def request(self, turn: Turn, request_id: str, *, stream: bool) -> bytes:
        images = [base64.b64encode(i).decode() for i in turn.images]
        return orjson.dumps({**dataclasses.asdict(turn), "images": images, "id": request_id, "stream": stream})

    def read(self, url: str, status: int, answer: Any, seconds: float, raw: bytes = b"") -> Generation:
        if status != 200 or not isinstance(answer, dict) or "error" in answer:
            said = answer.get("error", answer) if isinstance(answer, dict) else raw[:500].decode("utf-8", "replace")
            raise EngineError(
                f"{url}: HTTP {status}: {said}", url=url, retryable=status >= 500 or status == 200, alive=status == 200
            )
        if answer["finish"] not in ("stop", "length"):
            raise EngineError(f"{url}: the turn ended as {answer['finish']}", url=url, alive=True)
        if len(answer["logprobs"]) != len(answer["ids"]):
            raise EngineError(f"{url}: {len(answer['logprobs'])} log-probs for {len(answer['ids'])} tokens", retryable=False)
        return Generation(
            token_ids=answer["ids"],
            logprobs=answer["logprobs"],
            weight_version=answer["version"],
            finish=answer["finish"],
            seconds=seconds,
            prompt_tokens=answer["prompt_tokens"],
        )

    async def gather(self, lines: AsyncIterator[bytes], on_tokens: OnTokens) -> Any:
        answer: Any = None
        async for line in lines:
            if not line.strip():
                continue
            answer = orjson.loads(line)
            if "new" in answer:
                on_tokens(answer["new"])
        return answer

    def abort(self, request_id: str) -> tuple[str, dict[str, Any]]:
        return "/abort", {"id": request_id}
