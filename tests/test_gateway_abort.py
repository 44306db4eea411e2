"""Clients that go away and engines that die: a model that never ends its answer shows who still works for whom."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading

import httpx
import pytest
import tiny_checkpoint
from conftest import launch_engine
from gateway_fixtures import engine_load, eventually, served

from megatron_mmsr1.procs.guard import descendants
from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.rollout.engine import EngineClient
from megatron_mmsr1.rollout.engines.sglang import SGLangSettings
from serving.gateway.replies import ErrorEnvelope
from serving.settings import ServeConfig

MESSAGES = [{"role": "user", "content": "go on"}]


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A checkpoint that says a, b, a, b ... for as long as it is let."""
    home = tmp_path_factory.mktemp("endless")
    return tiny_checkpoint.write(home / "model", seed=4, chain=["\nab", "ba"])


@pytest.fixture(scope="module")
def start(endless, tmp_path_factory):
    """Starts the engine, always at the same URL."""
    sglang = {"max_total_tokens": 16384, "port": free_port()}
    log = tmp_path_factory.mktemp("endless_engine") / "engine.log"
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(launch_engine(endless, log, SGLangSettings(sglang=sglang)))


@pytest.fixture(scope="module")
def engine(start):
    return start()


@pytest.fixture(scope="module")
def cfg(endless):
    return ServeConfig.model_validate(
        {
            "model": {"path": str(endless), "min_pixels": 3136, "max_pixels": 3136},
            "protocol": {"prompts": "atlas", "max_turn_tokens": 2048, "max_response_tokens": 3000},
            "rollout": {"retries": 1},
            "gateway": {"name": "endless", "limits": {"concurrency": 2, "queue": 2}},
        }
    )


@pytest.fixture(scope="module")
def gateway(cfg, engine):
    with served(cfg, [engine.url], None) as g:
        yield g


@pytest.fixture
def given_up(gateway, engine, monkeypatch):
    """Waits until nobody is at work for us, and says how many turns the engine was told to end: others came to their ends."""
    told: list[str] = []
    abort = EngineClient._abort

    async def tell(self: EngineClient, url: str, rid: str) -> None:
        told.append(rid)
        await abort(self, url, rid)

    monkeypatch.setattr(EngineClient, "_abort", tell)

    def wait() -> int:
        eventually(lambda: engine_load(engine.url) == 0 and gateway.gateway.limits.inside == 0)
        return len(told)

    return wait


def stream(gateway, **options):
    return gateway.client().chat.completions.create(model="endless", messages=MESSAGES, stream=True, **options)


# ---------------------------------------------------------------------------------------------------- clients that go away
def test_a_closed_stream_frees_its_place_in_the_engine(gateway, engine, given_up):
    with stream(gateway) as chunks:
        for _, _chunk in zip(range(5), chunks, strict=False):
            pass
        eventually(lambda: engine_load(engine.url) == 1)  # what the engine tells of itself lags behind its first tokens
    assert given_up() == 1
    assert gateway.gateway.metrics.disconnects._value.get() >= 1


def test_so_does_a_client_that_no_longer_waits_for_a_completion(gateway, given_up):
    import openai

    client = gateway.client(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="endless", messages=MESSAGES)
    assert given_up() == 1


async def test_and_a_cancelled_task(gateway, engine, given_up):
    import openai

    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)

    async def read() -> None:
        async for _ in await client.chat.completions.create(model="endless", messages=MESSAGES, stream=True):  # pyright: ignore
            pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(eventually, lambda: engine_load(engine.url) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(given_up) == 1
    await client.close()


def test_a_body_that_breaks_off_leaves_nothing(gateway):
    at = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((at[0], int(at[1]))) as s:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        s.sendall(head.encode() + b'content-length: 100\r\n\r\n{"model":')
        eventually(lambda: gateway.gateway.limits.inside == 1)
    eventually(lambda: gateway.gateway.limits.inside == 0)


# ------------------------------------------------------------------------------------------------------- places and queue
def test_places_are_bounded_who_waits_gets_one_and_the_rest_is_told_when_to_come_back(gateway, engine, given_up):
    import openai

    limits = gateway.gateway.limits
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(stream(gateway)) for _ in range(2)]
        for s in running:
            next(iter(s))
        waiting = [threading.Thread(target=gateway.client().chat.completions.create, kwargs=kwargs()) for _ in range(2)]
        for t in waiting:
            t.start()
        eventually(lambda: limits.inside == 4)
        assert limits.answering == 2
        eventually(lambda: engine_load(engine.url) == 2)
        with pytest.raises(openai.RateLimitError) as e:
            stream(gateway)
        assert e.value.code == "overloaded" and int(e.value.response.headers["retry-after"]) >= 1
    for t in waiting:
        t.join()
    assert given_up() == 2


def kwargs() -> dict[str, object]:
    return {"model": "endless", "messages": MESSAGES, "max_tokens": 8}


def test_a_stream_that_waits_is_kept_alive_by_comments(cfg, engine):
    cfg = cfg.model_copy(deep=True)
    cfg.gateway.keepalive_s = 0.05
    with served(cfg, [engine.url], None) as gateway:
        kept_alive(gateway)


def kept_alive(gateway) -> None:
    body = {"model": "endless", "messages": MESSAGES, "stream": True, "max_tokens": 4}
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            next(iter(stack.enter_context(stream(gateway))))
        said: list[str] = []

        def read() -> None:
            with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, trust_env=False, timeout=60) as r:
                said.extend(line for line in r.iter_lines() if line)

        thread = threading.Thread(target=read)
        thread.start()
        eventually(lambda: gateway.gateway.limits.inside == 3)
        eventually(lambda: len(said) >= 2)
        assert set(said) == {": keep-alive"}
    thread.join()
    assert said[-1] == "data: [DONE]" and any("finish_reason" in line for line in said)


# ---------------------------------------------------------------------------------------------------------------- kill -9
def kill(engine) -> None:
    for pid in [engine.child.pid, *descendants(engine.child.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_an_engine_that_is_killed_is_told_of_and_used_again_once_it_is_back(gateway, engine, start):
    """The last test here: the module's engine does not survive it."""
    import openai

    chunks = stream(gateway)
    next(iter(chunks))
    waiting: list[openai.APIError] = []

    def complete() -> None:
        try:
            gateway.client().chat.completions.create(model="endless", messages=MESSAGES)
        except openai.APIError as e:
            waiting.append(e)

    thread = threading.Thread(target=complete)
    thread.start()
    eventually(lambda: engine_load(engine.url) == 2)
    kill(engine)
    with pytest.raises(openai.APIError) as mid:  # not a torn connection: an event that says so
        for _ in chunks:
            pass
    ErrorEnvelope.model_validate({"error": mid.value.body})
    assert mid.value.code == "engine_unavailable"
    thread.join()
    assert isinstance(waiting[0], openai.InternalServerError) and waiting[0].status_code == 503

    with pytest.raises(openai.InternalServerError) as before:  # before anything was sent a stream has a status, too
        stream(gateway)
    assert before.value.status_code == 503 and before.value.code == "engine_unavailable"
    assert engine.url not in str(before.value.message)
    eventually(lambda: gateway.get("/health").status_code == 503)
    said = gateway.get("/health").json()
    assert said["status"] == "unavailable" and said["error"]["code"] == "engine_unavailable"
    assert gateway.gateway.limits.inside == 0

    start()
    eventually(lambda: gateway.get("/health").json()["status"] == "ok")
    whole = gateway.client().chat.completions.create(model="endless", messages=MESSAGES, max_tokens=8)
    assert whole.usage.completion_tokens == 8
