"""A gateway on a real port, in a thread with an event loop of its own, over engines and search servers that run."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from megatron_mmsr1.data.dataset import Prompt
from megatron_mmsr1.procs.ports import bind
from megatron_mmsr1.search.fetch import Fetcher
from serving.gateway.app import create_app
from serving.gateway.gateway import Gateway
from serving.gateway.server import serve
from serving.settings import ServeConfig
from serving.stack import open_stack

if TYPE_CHECKING:  # a second or two to import, which the tests without a gateway need not pay
    from openai import OpenAI
    from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam


@dataclass(slots=True)
class Served:
    """`gateway` belongs to the thread: tests only read its counts."""

    url: str = ""
    gateway: Any = None
    app: Any = None
    error: BaseException | None = None
    listening: threading.Event = field(default_factory=threading.Event)

    def client(self, key: str = "any", **options: Any) -> OpenAI:
        from openai import OpenAI

        settings: dict[str, Any] = {"max_retries": 0, "timeout": 60} | options
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **settings)

    def post(self, body: Any = None, **options: Any) -> httpx.Response:
        """A request as it is, without a client's help."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            return client.post("/v1/chat/completions", **({"json": body} if body is not None else {}), **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            return client.get(path, **options)


@contextlib.contextmanager
def served(cfg: ServeConfig, engines: list[str], search: str | None, *, fetcher: Fetcher | None = None) -> Iterator[Served]:
    out = Served()
    stop: list[Callable[[], object]] = []

    async def main() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(end.set))
        async with open_stack(cfg, engines=engines, search=search) as stack:
            with bind(cfg.gateway.host, 0) as sock:
                out.app = create_app(cfg, stack, fetcher=fetcher)
                gateway: Gateway = out.app.state.gateway
                out.gateway = gateway
                out.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
                await serve(out.app, sock, ready=lambda _: out.listening.set(), stop=end, drain_s=1, freeze=False)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as e:  # told to the test
            out.error = e
        finally:
            out.listening.set()

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    try:
        out.listening.wait(60)
        if out.error is not None:
            raise out.error
        yield out
    finally:
        for f in stop:
            f()
        thread.join(30)
        assert not thread.is_alive()


def data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def ask(prompt: Prompt) -> list[ChatCompletionMessageParam]:
    """A prompt as a user's message."""
    parts: list[ChatCompletionContentPartParam] = [{"type": "text", "text": prompt.question}]
    for p in prompt.images:
        parts.append({"type": "image_url", "image_url": {"url": data_uri(p)}})
    return [{"role": "user", "content": parts}]


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what must come; the bound only ends a broken test."""
    until = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def engine_load(url: str) -> int:
    """Requests that an engine runs or queues."""
    said = httpx.get(f"{url}/v1/loads", trust_env=False, timeout=5).json()
    return sum(x["num_running_reqs"] + x["num_waiting_reqs"] for x in said["loads"])
