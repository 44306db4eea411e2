"""The client of SGLang's native `/generate`: token ids in, token ids and log-probs out; nothing is ever re-tokenised.

What a log-prob means here. The engine adds a bias of -1e9 to the banned ids, divides the logits by the temperature and
normalises what is left: so a returned log-prob is log_softmax(logits / temperature) over the vocabulary *without* the banned
ids, at every temperature above 0. The trainer must leave the same ids out of its normaliser, and divide alike. At temperature 0
the engine takes the best token and reports its log-prob at temperature 1.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.balance import Balance

if TYPE_CHECKING:
    import aiohttp

BAN = -1e9
BACKOFF_S = 0.5  # doubled a retry, with jitter
ABORT_TIMEOUT_S = 5.0
# SGLang drops a connection that was idle for 5 seconds; one taken up again at that moment fails without an answer.
KEEP_ALIVE_S = 3.0


class EngineError(RunError):
    """An engine failed a request for good. `url` names it; `retryable` tells whether another try could have helped."""

    def __init__(self, message: str, *, url: str = "", retryable: bool = True) -> None:
        super().__init__(message)
        self.url = url
        self.retryable = retryable


@dataclass(slots=True)
class Generation:
    """One sampled turn. `logprobs` natural, one a token. `finish`: "stop" (the stop token is the last id) or "length"."""

    token_ids: list[int]
    logprobs: list[float]
    weight_version: int
    finish: str
    cached_tokens: int = 0
    seconds: float = 0.0
    prompt_tokens: int | None = None  # as the engine counted them, pictures expanded; None: it did not say
    weight_versions: list[int] = field(default_factory=list)  # one a token; empty: all are of `weight_version`


class EngineClient:
    """Requests to one or several SGLang servers that hold the same model. Belongs to one event loop; `close` it there.

    `timeout_s` is the deadline of one try. Connection errors, time-outs and 5xx are tried again `retries` times, on another
    engine where there is one. `stop_ids` end a turn and stay in it.
    """

    def __init__(
        self, urls: Sequence[str], *, timeout_s: float = 300.0, retries: int = 2, stop_ids: Sequence[int] = ()
    ) -> None:
        if not urls:
            raise ValueError("an EngineClient needs at least one URL")
        self.balance = Balance([u.rstrip("/") for u in urls])
        self._timeout_s = timeout_s
        self._retries = retries
        self._stop_ids = list(stop_ids)
        self._session: aiohttp.ClientSession | None = None

    def conversation(self, group: str) -> Conversation:
        """A handle whose turns all go to one engine, where their prefix is cached; near others of the same `group`."""
        return Conversation(self, group)

    async def generate(
        self,
        engine_ids: Sequence[int],
        images: Sequence[bytes],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        banned_ids: Sequence[int] = (),
        url: str | None = None,
    ) -> Generation:
        """Sample one turn after `engine_ids`, which hold one `<|image_pad|>` for each of `images` (encoded pictures).

        `seed` (63 bits) and the weights decide what is sampled where the engine samples deterministically. `url`: the engine
        to try first. Raises EngineError once the tries are used up, at once for a request that the engine refuses. A cancelled
        call is aborted in the engine.
        """
        body = self._body(engine_ids, images, max_new_tokens, temperature, seed, banned_ids)
        avoid: set[str] = set()
        for attempt in range(self._retries + 1):
            target = self.balance.choose(prefer=url, avoid=avoid)
            try:
                with self.balance.in_flight(target):
                    return await self._once(target, body)
            except EngineError as e:
                avoid.add(target)
                if not e.retryable or attempt == self._retries:
                    raise
            await asyncio.sleep(BACKOFF_S * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _body(
        self,
        engine_ids: Sequence[int],
        images: Sequence[bytes],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        banned_ids: Sequence[int],
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "input_ids": list(engine_ids),
            "sampling_params": {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "sampling_seed": seed,
                "stop_token_ids": self._stop_ids,
                "logit_bias": {str(i): BAN for i in banned_ids} or None,
                "skip_special_tokens": False,
            },
            "return_logprob": True,
        }
        if images:
            body["image_data"] = ["data:image/png;base64," + base64.b64encode(i).decode() for i in images]
        return body

    async def _once(self, url: str, body: dict[str, Any]) -> Generation:
        import aiohttp
        import orjson

        rid = uuid.uuid4().hex
        started = time.monotonic()
        done = False
        try:
            async with asyncio.timeout(self._timeout_s):
                data = orjson.dumps({**body, "rid": rid})
                try:
                    status, raw = await self._post(f"{url}/generate", data)
                except aiohttp.ServerDisconnectedError:
                    # An idle connection that the server was just closing, as a rule; a dead server refuses the next one.
                    status, raw = await self._post(f"{url}/generate", data)
                done = True
            return _read(url, status, raw, time.monotonic() - started)
        except TimeoutError:
            raise EngineError(f"{url}: no answer within {self._timeout_s:g} s (rollout.generate_timeout_s)", url=url) from None
        except aiohttp.ClientError as e:
            done = True  # nothing there to abort
            raise EngineError(f"{url}: connection failed ({type(e).__name__}: {e})", url=url) from e
        finally:
            if not done:  # a time-out or a cancellation: the engine would go on sampling for nobody
                abort = asyncio.ensure_future(self._abort(url, rid))
                _background.add(abort)
                abort.add_done_callback(_background.discard)

    async def _post(self, url: str, data: bytes) -> tuple[int, bytes]:
        async with self._pool().post(url, data=data, headers={"content-type": "application/json"}) as r:
            return r.status, await r.read()

    async def _abort(self, url: str, rid: str) -> None:
        import aiohttp

        try:
            async with self._pool().post(
                f"{url}/abort_request", json={"rid": rid}, timeout=aiohttp.ClientTimeout(total=ABORT_TIMEOUT_S)
            ):
                pass
        except (aiohttp.ClientError, TimeoutError):
            return  # the engine is gone, and the request with it

    def _pool(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None or self._session.closed:
            # A turn waits in the engine, not here: as many connections as there are turns. Environment proxies must not
            # see loopback traffic; the only clock is the deadline above.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
            timeout = aiohttp.ClientTimeout(total=None)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        return self._session

    async def close(self) -> None:
        """Wait for pending aborts, then close the connections."""
        if _background:
            await asyncio.gather(*_background, return_exceptions=True)
        if self._session is not None:
            await self._session.close()


# The loop keeps only weak references to tasks.
_background: set[asyncio.Future[None]] = set()


class Conversation:
    """One conversation's view of an EngineClient, with the same `generate`."""

    def __init__(self, client: EngineClient, group: str) -> None:
        self._client, self._group = client, group
        self._url: str | None = None

    async def generate(self, engine_ids: Sequence[int], images: Sequence[bytes], **options: Any) -> Generation:
        if self._url is None:
            self._url = self._client.balance.choose_for(self._group)
        return await self._client.generate(engine_ids, images, url=self._url, **options)


def _read(url: str, status: int, raw: bytes, seconds: float) -> Generation:
    """The engine's answer as a Generation; EngineError if it is an error, an abort, or not what was asked for."""
    import orjson

    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError:
        answer = None
    if status != 200 or not isinstance(answer, dict) or "meta_info" not in answer:
        error = answer.get("error", answer) if isinstance(answer, dict) else raw[:500].decode("utf-8", "replace")
        message = error.get("message", error) if isinstance(error, dict) else error
        raise EngineError(f"{url}: HTTP {status}: {message}", url=url, retryable=status >= 500 or status == 200)
    meta = answer["meta_info"]
    ids = list(answer["output_ids"])
    finish = (meta.get("finish_reason") or {}).get("type", "")
    if finish not in ("stop", "length"):
        reason = meta.get("finish_reason")
        raise EngineError(f"{url}: the turn ended as {reason}", url=url)
    logprobs = [entry[0] for entry in meta.get("output_token_logprobs") or []]
    said = [entry[1] for entry in meta.get("output_token_logprobs") or []]
    if said != ids or any(x is None for x in logprobs):
        raise EngineError(f"{url}: {len(logprobs)} log-probs do not belong to its {len(ids)} tokens", url=url, retryable=False)
    return Generation(
        token_ids=ids,
        logprobs=logprobs,
        weight_version=_version(meta.get("weight_version")),
        finish=finish,
        cached_tokens=int(meta.get("cached_tokens") or 0),
        seconds=seconds,
        prompt_tokens=meta.get("prompt_tokens"),
        weight_versions=_versions(meta.get("weight_versions"), len(ids)),
    )


def _version(said: object) -> int:
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
    out = [_version(spans[-1]["version"])] * n
    for span in spans:
        out[span["start"] : span["end"]] = [_version(span["version"])] * (min(span["end"], n) - span["start"])
    return out
