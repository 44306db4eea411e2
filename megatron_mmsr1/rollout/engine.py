"""The client of engines that serve over HTTP: balance, retries, deadlines, aborts. What is said to them is their `Wire`'s
(`engines/base.py`)."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from megatron_mmsr1.rollout.balance import Balance
from megatron_mmsr1.rollout.engines.base import Turn, Wire
from megatron_mmsr1.rollout.generation import EngineError, Generation, OnTokens
from megatron_mmsr1.rollout.pulse import Pulse

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Conversation", "EngineClient", "EngineError", "Generation"]

BACKOFF_S = 0.5  # doubled a retry, with jitter
OUTAGE_POLL_S = 0.5
ABORT_TIMEOUT_S = 5.0
# SGLang drops a connection that was idle for 5 seconds; one taken up again at that moment fails without an answer.
KEEP_ALIVE_S = 3.0


class EngineClient:
    """Requests to one or several engines of one kind that hold the same model. Belongs to one event loop; `close` it there.

    `timeout_s` is the deadline of one try, `hung_after_s` the time after which an engine that generates nothing is given up.
    Connection errors, time-outs and 5xx are tried again `retries` times, on another engine where there is one; and beyond that
    for `outage_s` seconds, in which an engine may come back. `stop_ids` end a turn and stay in it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        wire: Wire,
        *,
        timeout_s: float = 300.0,
        retries: int = 2,
        stop_ids: Sequence[int] = (),
        hung_after_s: float = 120.0,
        outage_s: float = 0.0,
    ) -> None:
        if not urls:
            raise ValueError("an EngineClient needs at least one URL")
        self.balance = Balance([u.rstrip("/") for u in urls])
        self._wire = wire
        self._timeout_s, self._hung_after_s, self._outage_s = timeout_s, hung_after_s, outage_s
        self._retries = retries
        self._expected: int | None = None
        self._stop_ids = tuple(stop_ids)
        self._session: aiohttp.ClientSession | None = None
        self._pulses: dict[str, Pulse] = {}
        self._aborts: set[asyncio.Future[None]] = set()  # the loop keeps only weak references to tasks

    def conversation(self, group: str) -> Conversation:
        """A handle whose turns all go to one engine while it is well, where their prefix is cached; near others of `group`."""
        return Conversation(self, group)

    def expect(self, version: int | None) -> None:
        """As `base.Client` has it."""
        self._expected = version

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
        turn = Turn(engine_ids, images, max_new_tokens, temperature, seed, banned_ids, self._stop_ids)
        avoid: set[str] = set()
        told = False
        attempt, until = 0, None

        def tell(ids: list[int]) -> None:
            nonlocal told
            told = True
            if on_tokens is not None:
                on_tokens(ids)

        while True:
            target = self.balance.choose(prefer=url, avoid=avoid)
            try:
                with self.balance.in_flight(target):
                    done = await self._once(target, turn, tell if on_tokens is not None else None)
                self._require_version(target, done)
                self.balance.answered(target)
                return done
            except EngineError as e:
                if e.alive or not e.retryable:
                    self.balance.answered(target)
                else:
                    self.balance.failed(target)
                if not e.retryable:
                    raise
                avoid.add(target)
                until = time.monotonic() + self._outage_s if until is None else until
                if told or (attempt >= self._retries and time.monotonic() >= until):
                    raise
            await asyncio.sleep(BACKOFF_S * 2 ** min(attempt, 4) * random.uniform(0.5, 1.0))
            attempt += 1
            while not self.balance.any_well and time.monotonic() < until:
                await asyncio.sleep(OUTAGE_POLL_S * random.uniform(0.5, 1.0))

    def _require_version(self, url: str, done: Generation) -> None:
        """Raises EngineError for an answer of other weights than expected, where another engine may have those."""
        found = set(done.weight_versions or [done.weight_version])
        if self._expected is not None and len(self.balance.urls) > 1 and found != {self._expected}:
            raise EngineError(f"{url} holds weights of version {sorted(found)}, not {self._expected}", url=url)

    async def _once(self, url: str, turn: Turn, on_tokens: OnTokens | None = None) -> Generation:
        import aiohttp

        rid = uuid.uuid4().hex
        started = time.monotonic()
        done = False
        data = self._wire.request(turn, rid, stream=on_tokens is not None)
        at = url + self._wire.generate_path
        try:
            async with asyncio.timeout(self._timeout_s):
                if on_tokens is not None:
                    status, answer = await self._pulse(url).guard(self._stream(at, data, on_tokens))
                    raw = b""
                else:
                    status, answer, raw = await self._pulse(url).guard(self._post(at, data))
                done = True
            return self._wire.read(url, status, answer, time.monotonic() - started, raw)
        except TimeoutError:
            waited = time.monotonic() - started
            why = (
                f"no answer within {self._timeout_s:g} s (rollout.generate_timeout_s)"
                if waited >= self._timeout_s
                else f"it generated nothing for {self._hung_after_s:g} s (engine.hung_after_s)"
            )
            raise EngineError(f"{url}: {why}", url=url) from None
        except aiohttp.ClientError as e:
            done = True  # nothing there to abort
            raise EngineError(f"{url}: connection failed ({type(e).__name__}: {e})", url=url) from e
        finally:
            if not done:  # a time-out or a cancellation: the engine would go on sampling for nobody
                abort = asyncio.ensure_future(self._abort(url, rid))
                self._aborts.add(abort)
                abort.add_done_callback(self._aborts.discard)

    async def _post(self, url: str, data: bytes) -> tuple[int, Any, bytes]:
        import aiohttp

        try:
            status, raw = await self._send(url, data)
        except aiohttp.ServerDisconnectedError:
            # An idle connection that the server was just closing, as a rule; a dead server refuses the next one.
            status, raw = await self._send(url, data)
        return status, _parsed(raw), raw

    async def _send(self, url: str, data: bytes) -> tuple[int, bytes]:
        async with self._pool().post(url, data=data, headers={"content-type": "application/json"}) as r:
            return r.status, await r.read()

    async def _stream(self, url: str, data: bytes, on_tokens: OnTokens) -> tuple[int, Any]:
        async with self._pool().post(url, data=data, headers={"content-type": "application/json"}) as r:
            if r.status != 200:
                raw = await r.read()
                answer = _parsed(raw)
                return r.status, {"error": raw[:500].decode("utf-8", "replace")} if answer is None else answer
            return 200, await self._wire.gather(_lines(r.content), on_tokens)

    def _pulse(self, url: str) -> Pulse:
        if url not in self._pulses:
            self._pulses[url] = Pulse(lambda: self._generates(url), self._hung_after_s)
        return self._pulses[url]

    async def _generates(self, url: str) -> bool:
        import aiohttp

        limit = aiohttp.ClientTimeout(total=self._hung_after_s)
        try:
            async with self._pool().get(url + self._wire.health_path, timeout=limit) as r:
                return r.status in (200, 404)  # a router has no such page; its engines are its own to watch
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _abort(self, url: str, rid: str) -> None:
        import aiohttp

        path, body = self._wire.abort(rid)
        try:
            async with self._pool().post(url + path, json=body, timeout=aiohttp.ClientTimeout(total=ABORT_TIMEOUT_S)):
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
        for pulse in self._pulses.values():
            await pulse.close()
        if self._session is not None:
            await self._session.close()


def _parsed(raw: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


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
        if self._url is None or not self._client.balance.well(self._url):
            self._url = self._client.balance.choose_for(self._group)
        return await self._client.generate(engine_ids, images, url=self._url, **options)
