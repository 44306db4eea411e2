"""A real HTTP/1.1 server on loopback, in a thread of its own, that a handler plays a vendor on.

async with Vendor(serper.found) as v:  # or `with`, where there is no event loop
    v.url, v.requests, v.peak          # what was asked, and how many at once
    v.latency = 0.05                   # seconds before each answer
    v.handler = in_turn(failing(503), serper.found)
    v.kill(); v.revive()               # refuses connections, then is back on the same port
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

CHUNK = b"x" * 2**16


@dataclass(slots=True, frozen=True)
class Asked:
    """One request. `target`: as the request line had it; `headers`: names in lower case; `at`: when it had arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True, frozen=True)
class Reply:
    """`wire`: whole; truncated (half of the body that Content-Length announces, then the end); endless (a body without end);
    trickling (a byte at a time); silent (nothing, ever); dropped (the connection ends instead of an answer)."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wire: Literal["whole", "truncated", "endless", "trickling", "silent", "dropped"] = "whole"


Handler = Callable[[Asked], Reply]


def answer(said: Any, status: int = 200, **headers: str) -> Reply:
    """JSON; `headers` with _ for -."""
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return Reply(json.dumps(said).encode(), status, {"content-type": "application/json", **named})


def always(reply: Reply) -> Handler:
    return lambda _: reply


def in_turn(*steps: Reply | Handler) -> Handler:
    """Each once, in their order; the last one from then on."""
    left = list(steps)

    def handler(asked: Asked) -> Reply:
        step = left.pop(0) if len(left) > 1 else left[0]
        return step if isinstance(step, Reply) else step(asked)

    return handler


class Vendor:
    """Serves while it is entered. `handler` runs in the server's thread; what it raises is answered 599."""

    def __init__(self, handler: Handler, *, latency: float = 0.0):
        self.handler, self.latency = handler, latency
        self.requests: list[Asked] = []
        self.in_flight = self.peak = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        # Keeps the port ours while nobody listens on it: connections are then refused, as by a host that is down.
        self._place = _bound(0)
        self.port: int = self._place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Vendor:
        self._thread.start()
        self.revive()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._run(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._place.close()

    async def __aenter__(self) -> Vendor:
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self.__exit__(*error)

    def kill(self) -> None:
        """As a process that dies: connections are reset, new ones refused."""
        self._run(self._kill())

    def revive(self) -> None:
        self._run(self._revive())

    def starts_within(self, seconds: float) -> int:
        """The most requests that arrived in any window of so many seconds."""
        times = sorted(r.at for r in self.requests)
        return max((sum(t <= u < t + seconds for u in times) for t in times), default=0)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _kill(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _revive(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connection, sock=_bound(self.port), backlog=4096)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # whoever asked has gone, or we end
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        asked = Asked(method, target, headers, body, time.monotonic())
        self.requests.append(asked)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            try:
                reply = self.handler(asked)
            except Exception as e:
                reply = Reply(f"the test's handler failed: {e!r}".encode(), 599)
            return await _send(writer, reply)
        finally:
            self.in_flight -= 1


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    """Whether the connection can go on."""
    if reply.wire == "silent":
        await asyncio.Event().wait()
    if reply.wire == "dropped":
        return False
    length = {} if reply.wire in ("endless", "trickling") else {"content-length": str(len(reply.body))}
    lines = [f"HTTP/1.1 {reply.status} -", *(f"{k}: {v}" for k, v in {**length, **reply.headers}.items())]
    body = reply.body[: len(reply.body) // 2] if reply.wire == "truncated" else reply.body
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    while reply.wire == "endless":
        writer.write(CHUNK)
        await writer.drain()
    while reply.wire == "trickling":
        writer.write(b" ")
        await asyncio.sleep(0.01)
        await writer.drain()
    await writer.drain()
    return reply.wire == "whole"


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*others, return_exceptions=True)


def _bound(port: int) -> socket.socket:
    # Named, for asyncio turns Nagle's wait off only where it reads the protocol; without that each answer takes 40 ms more.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock
