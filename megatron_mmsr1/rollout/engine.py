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
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.rollout import streaming
from megatron_mmsr1.rollout.balance import Balance
from megatron_mmsr1.rollout.generation import EngineError, Generation, read, read_answer
from megatron_mmsr1.rollout.streaming import OnTokens

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Conversation", "EngineClient", "EngineError", "Generation"]

BAN = -1e9
BACKOFF_S = 0.5  # doubled a retry, with jitter
ABORT_TIMEOUT_S = 5.0
# SGLang drops a connection that was idle for 5 seconds; one taken up again at that moment fails without an answer.
KEEP_ALIVE_S = 3.0


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
        self._aborts: set[asyncio.Future[None]] = set()  # the loop keeps only weak references to tasks

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
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Sample one turn after `engine_ids`, which hold one `<|image_pad|>` for each of `images` (encoded pictures).

        `seed` (63 bits) and the weights decide what is sampled where the engine samples deterministically. `url`: the engine
        to try first. `on_tokens` is told ids as they are sampled; once it was told any there is no second try, which would
        tell them again. Raises EngineError once the tries are used up, at once for a request that the engine refuses. A
        cancelled call is aborted in the engine.
        """
        body = self._body(engine_ids, images, max_new_tokens, temperature, seed, banned_ids)
        avoid: set[str] = set()
        told = False

        def tell(ids: list[int]) -> None:
            nonlocal told
            told = True
            if on_tokens is not None:
                on_tokens(ids)

        for attempt in range(self._retries + 1):
            target = self.balance.choose(prefer=url, avoid=avoid)
            try:
                with self.balance.in_flight(target):
                    return await self._once(target, body, tell if on_tokens is not None else None)
            except EngineError as e:
                avoid.add(target)
                if not e.retryable or told or attempt == self._retries:
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

    async def _once(self, url: str, body: dict[str, Any], on_tokens: OnTokens | None = None) -> Generation:
        import aiohttp
        import orjson

        rid = uuid.uuid4().hex
        started = time.monotonic()
        done = False
        try:
            async with asyncio.timeout(self._timeout_s):
                if on_tokens is not None:
                    data = orjson.dumps({**body, "rid": rid, "stream": True})
                    status, answer = await self._stream(f"{url}/generate", data, on_tokens)
                    done = True
                    return read(url, status, answer, time.monotonic() - started)
                data = orjson.dumps({**body, "rid": rid})
                try:
                    status, raw = await self._post(f"{url}/generate", data)
                except aiohttp.ServerDisconnectedError:
                    # An idle connection that the server was just closing, as a rule; a dead server refuses the next one.
                    status, raw = await self._post(f"{url}/generate", data)
                done = True
            return read_answer(url, status, raw, time.monotonic() - started)
        except TimeoutError:
            raise EngineError(f"{url}: no answer within {self._timeout_s:g} s (rollout.generate_timeout_s)", url=url) from None
        except aiohttp.ClientError as e:
            done = True  # nothing there to abort
            raise EngineError(f"{url}: connection failed ({type(e).__name__}: {e})", url=url) from e
        finally:
            if not done:  # a time-out or a cancellation: the engine would go on sampling for nobody
                abort = asyncio.ensure_future(self._abort(url, rid))
                self._aborts.add(abort)
                abort.add_done_callback(self._aborts.discard)

    async def _post(self, url: str, data: bytes) -> tuple[int, bytes]:
        async with self._pool().post(url, data=data, headers={"content-type": "application/json"}) as r:
            return r.status, await r.read()

    async def _stream(self, url: str, data: bytes, on_tokens: OnTokens) -> tuple[int, Any]:
        import orjson

        async with self._pool().post(url, data=data, headers={"content-type": "application/json"}) as r:
            if r.status != 200:
                raw = await r.read()
                try:
                    return r.status, orjson.loads(raw)
                except orjson.JSONDecodeError:
                    return r.status, {"error": raw[:500].decode("utf-8", "replace")}
            return 200, await streaming.gather(_lines(r.content), on_tokens)

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
        if self._aborts:
            await asyncio.gather(*self._aborts)
        if self._session is not None:
            await self._session.close()


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of whatever length: aiohttp's own readline gives up on one of over 64 KiB."""
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
    if rest:
        yield rest


class Conversation:
    """One conversation's view of an EngineClient, with the same `generate`."""

    def __init__(self, client: EngineClient, group: str) -> None:
        self._client, self._group = client, group
        self._url: str | None = None

    async def generate(self, engine_ids: Sequence[int], images: Sequence[bytes], **options: Any) -> Generation:
        if self._url is None:
            self._url = self._client.balance.choose_for(self._group)
        return await self._client.generate(engine_ids, images, url=self._url, **options)
