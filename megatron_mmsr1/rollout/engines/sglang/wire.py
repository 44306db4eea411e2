"""SGLang's native `/generate`: token ids in, token ids and log-probs out; nothing is ever re-tokenised.

SGLang adds a bias of -1e9 to the banned ids, divides the logits by the temperature and normalises what is left, which is what
`base.Turn` asks for; at temperature 0 it reports the best token's log-prob at temperature 1.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import orjson

import megatron_mmsr1.rollout.engines.sglang.streaming as streaming
from megatron_mmsr1.rollout.engines.base import Turn
from megatron_mmsr1.rollout.generation import EngineError, Generation, OnTokens

BAN = -1e9


class SGLangWire:
    """See `base.Wire`."""

    generate_path = "/generate"
    # Any token counts, of whatever request; an idle engine samples one for the purpose.
    health_path = "/health_generate"

    def request(self, turn: Turn, request_id: str, *, stream: bool) -> bytes:
        body: dict[str, Any] = {
            "rid": request_id,
            "input_ids": list(turn.ids),
            "sampling_params": {
                "max_new_tokens": turn.max_new_tokens,
                "temperature": turn.temperature,
                "sampling_seed": turn.seed,
                "stop_token_ids": list(turn.stop_ids),
                "logit_bias": {str(i): BAN for i in turn.banned_ids} or None,
                "skip_special_tokens": False,
            },
            "return_logprob": True,
        }
        if turn.images:
            body["image_data"] = ["data:image/png;base64," + base64.b64encode(i).decode() for i in turn.images]
        if stream:
            body["stream"] = True
        return orjson.dumps(body)

    def read(self, url: str, status: int, answer: Any, seconds: float, raw: bytes = b"") -> Generation:
        if status != 200 or not isinstance(answer, dict) or "meta_info" not in answer:
            error = answer.get("error", answer) if isinstance(answer, dict) else raw[:500].decode("utf-8", "replace")
            message = error.get("message", error) if isinstance(error, dict) else error
            raise EngineError(f"{url}: HTTP {status}: {message}", url=url, retryable=status >= 500 or status == 200)
        meta = answer["meta_info"]
        ids = list(answer["output_ids"])
        finish = (meta.get("finish_reason") or {}).get("type", "")
        if finish not in ("stop", "length"):
            reason = meta.get("finish_reason")
            raise EngineError(f"{url}: the turn ended as {reason}", url=url, alive=True)
        logprobs = [entry[0] for entry in meta.get("output_token_logprobs") or []]
        said = [entry[1] for entry in meta.get("output_token_logprobs") or []]
        if said != ids or any(x is None for x in logprobs):
            raise EngineError(
                f"{url}: {len(logprobs)} log-probs do not belong to its {len(ids)} tokens", url=url, retryable=False
            )
        return Generation(
            token_ids=ids,
            logprobs=logprobs,
            weight_version=version_number(meta.get("weight_version")),
            finish=finish,
            cached_tokens=int(meta.get("cached_tokens") or 0),
            seconds=seconds,
            prompt_tokens=meta.get("prompt_tokens"),
            weight_versions=_versions(meta.get("weight_versions"), len(ids)),
        )

    async def gather(self, lines: AsyncIterator[bytes], on_tokens: OnTokens) -> Any:
        return await streaming.gather(lines, on_tokens)

    def abort(self, request_id: str) -> tuple[str, dict[str, Any]]:
        return "/abort_request", {"rid": request_id}


def version_number(said: object) -> int:
    """SGLang's versions are strings; "default" is what a server holds before its first update, which is version 0."""
    if said in (None, "default"):
        return 0
    if not str(said).isdecimal():
        raise EngineError(f"the engine's weight version is {said!r}, not one of ours: it is a number", retryable=False)
    return int(str(said))


def _versions(spans: list[dict[str, Any]] | None, n: int) -> list[int]:
    """SGLang's spans [start, end) of one version each, a version a token; empty if there is one version only."""
    if not spans or len(spans) == 1:
        return []
    out = [version_number(spans[-1]["version"])] * n
    for span in spans:
        out[span["start"] : span["end"]] = [version_number(span["version"])] * (min(span["end"], n) - span["start"])
    return out
