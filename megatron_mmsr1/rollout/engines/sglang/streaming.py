"""A turn as the engine samples it: SGLang's server-sent events put together to the answer that it would have given at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from megatron_mmsr1.rollout.generation import OnTokens

DONE = b"[DONE]"


async def gather(lines: AsyncIterator[bytes], on_tokens: OnTokens) -> Any:
    """The whole answer as JSON, each new token told as it comes; what is no answer (an error) is returned as it is.

    An engine sends either all tokens so far with every event (its default) or only the new ones (incremental_streaming_output,
    which spares long turns a quadratic amount of JSON): `completion_tokens` tells which.
    """
    ids: list[int] = []
    logprobs: list[Any] = []
    answer: Any = None
    async for line in lines:
        data = line.strip().removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == DONE:
            continue
        try:
            answer = orjson.loads(data)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(answer, dict) or "meta_info" not in answer:
            return answer
        meta = answer["meta_info"]
        got, said = list(answer.get("output_ids") or []), list(meta.get("output_token_logprobs") or [])
        whole = len(got) == meta.get("completion_tokens")
        new = got[len(ids) :] if whole else got
        ids = got if whole else ids + got
        logprobs = said if whole else logprobs + said
        if new:
            on_tokens(new)
    if isinstance(answer, dict):
        answer["output_ids"] = ids
        answer["meta_info"]["output_token_logprobs"] = logprobs
    return answer
