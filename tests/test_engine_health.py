"""Engines that die, hang or come back, seen from the client: small HTTP servers on loopback stand for the engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.rollout.balance import COOL_S, MAX_COOL_S, Balance
from megatron_mmsr1.rollout.engine import EngineClient, EngineError
from megatron_mmsr1.rollout.engines.sglang.wire import SGLangWire

pytestmark = pytest.mark.long

URLS = ["http://a", "http://b", "http://c"]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_dead_engine_attracts_no_conversation():
    """It is always idle. Before, the least loaded engine got every new conversation, dead or not."""
    balance = Balance(URLS, clock=Clock())
    balance.failed("http://a")
    busy = [balance.in_flight(u) for u in ("http://b", "http://c") for _ in range(50)]
    for b in busy:
        b.__enter__()
    assert all(balance.choose_for(str(g)) != "http://a" for g in range(20))
    assert balance.choose(prefer="http://a") != "http://a"


def test_a_group_leaves_an_engine_that_fails_and_stays_away_while_it_rests():
    balance = Balance(URLS, clock=Clock())
    home = balance.choose_for("g")
    balance.failed(home)
    away = balance.choose_for("g")
    assert away != home and balance.choose_for("g") == away


def test_after_its_rest_an_engine_gets_one_turn_as_a_trial():
    clock = Clock()
    balance = Balance(URLS, clock=clock)
    balance.failed("http://a")
    assert not balance.well("http://a")
    clock.now += COOL_S
    assert balance.well("http://a")
    with balance.in_flight("http://a"):
        assert not balance.well("http://a"), "a second turn must wait for the first one's answer"
    balance.answered("http://a")
    with balance.in_flight("http://a"):
        assert balance.well("http://a")


@given(st.integers(1, 40))
def test_the_rest_doubles_up_to_a_limit_and_counts_turns_that_failed_together_once(n):
    """n failures in a row, each at the end of the rest before: min(30, 2^(n-1)) seconds; others meanwhile change nothing."""
    clock = Clock()
    balance = Balance(URLS, clock=clock)
    for i in range(n):
        balance.failed("http://a")
        for _ in range(5):
            balance.failed("http://a")
        rest = min(MAX_COOL_S, COOL_S * 2**i)
        clock.now += rest * 0.99
        assert not balance.well("http://a")
        clock.now += rest * 0.02
        assert balance.well("http://a")


# --------------------------------------------------------------------------------------------------------- real sockets
ANSWER = {
    "output_ids": [4],
    "meta_info": {"finish_reason": {"type": "stop"}, "weight_version": "1", "output_token_logprobs": [[-0.5, 4, None]]},
}


class Fake:
    """Speaks SGLang's paths. `mode`: well, or hung (accepts and never answers, its health included)."""

    def __init__(self, mode: str = "well") -> None:
        self.mode, self.asked, self.probed, self.aborted = mode, 0, 0, 0

    async def generate(self, request: web.Request) -> web.Response:
        self.asked += 1
        return await self._answer(ANSWER)

    async def health(self, request: web.Request) -> web.Response:
        self.probed += 1
        return await self._answer({})

    async def abort(self, request: web.Request) -> web.Response:
        self.aborted += 1
        return web.Response()

    async def _answer(self, body: Any) -> web.Response:
        while self.mode == "hung":
            await asyncio.sleep(0.01)
        return web.Response(body=orjson.dumps(body), content_type="application/json")


@asynccontextmanager
async def serving(fake: Fake, port: int = 0) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/generate", fake.generate)
    app.router.add_get("/health_generate", fake.health)
    app.router.add_post("/abort_request", fake.abort)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    assert site._server is not None
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    finally:
        fake.mode = "well"
        await runner.cleanup()


def turn(client: Any, **options: Any) -> Any:
    return client.generate([1], [], max_new_tokens=1, temperature=1.0, seed=1, **options)


async def test_a_hung_engine_costs_its_limit_once_and_its_conversations_move():
    """300 s a turn, every turn, before: nothing but the turn's own deadline noticed."""
    hung, well = Fake("hung"), Fake()
    async with serving(hung) as one, serving(well) as two:
        client = EngineClient([one, two], SGLangWire(), timeout_s=300, retries=1, hung_after_s=2)
        talk = client.conversation("g")
        talk._url = one
        assert (await talk.generate([1], [], max_new_tokens=1, temperature=1.0, seed=1)).token_ids == [4]
        for _ in range(5):
            await talk.generate([1], [], max_new_tokens=1, temperature=1.0, seed=1)
        await client.close()
        assert (hung.asked, hung.aborted, well.asked) == (1, 1, 6)


async def test_an_engine_that_generates_is_waited_for():
    """Only health tells a busy engine from a hung one: here the turn ends after a limit's worth of questions and more."""
    slow = Fake()

    async def late(request: web.Request) -> web.Response:
        while slow.probed < 6:  # four a limit
            await asyncio.sleep(0.01)
        return web.Response(body=orjson.dumps(ANSWER), content_type="application/json")

    slow.generate = late  # type: ignore[method-assign]
    async with serving(slow) as url:
        client = EngineClient([url], SGLangWire(), timeout_s=300, retries=0, hung_after_s=2)
        assert (await turn(client)).token_ids == [4]
        await client.close()


async def test_a_turn_waits_for_an_engine_that_is_replaced():
    port = free_port()
    client = EngineClient([f"http://127.0.0.1:{port}"], SGLangWire(), retries=0, outage_s=60)
    turns = [asyncio.ensure_future(turn(client)) for _ in range(8)]
    await asyncio.sleep(1.0)
    assert not any(t.done() for t in turns)
    fake = Fake()
    async with serving(fake, port):
        assert all(g.token_ids == [4] for g in await asyncio.gather(*turns))
        await client.close()


async def test_without_an_outage_to_wait_out_the_tries_end_it():
    client = EngineClient(["http://127.0.0.1:9"], SGLangWire(), retries=1)
    with pytest.raises(EngineError, match="connection failed"):
        await turn(client)
    await client.close()
