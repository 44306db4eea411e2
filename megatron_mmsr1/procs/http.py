"""The HTTP client for inside traffic: probes, statistics and control calls between our own processes.

Synchronous and of the standard library alone, so that whoever starts a process may use it. It asks no proxy, follows no
redirect, holds one deadline over the whole exchange and reads no more than it was told to. Rollouts, which keep hundreds of
requests in flight, use the engines' asynchronous client; vendors and web pages have clients of their own in `search`.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAX_BYTES = 16 * 2**20


class Unanswered(Exception):
    """No whole answer came: nobody listens, the deadline passed, the answer is too long or is no HTTP. The text says which."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`url` is what was asked; any status counts as an answer."""

    url: str
    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON. Raises Unanswered if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise Unanswered(f"{self.url} answered HTTP {self.status} with what is no JSON: {self.text[:200]!r}") from None


def get(url: str, *, timeout_s: float = 5.0, max_bytes: int = MAX_BYTES) -> Answer:
    """GET `url`. `timeout_s`: seconds for all of it, from connecting to the last byte. Raises Unanswered."""
    return _exchange("GET", url, None, timeout_s, max_bytes)


def post(url: str, body: Any, *, timeout_s: float = 5.0, max_bytes: int = MAX_BYTES) -> Answer:
    """POST `body` as JSON, bytes as they are. `timeout_s` as for `get`. Raises Unanswered."""
    return _exchange("POST", url, body if isinstance(body, bytes) else json.dumps(body).encode(), timeout_s, max_bytes)


def is_url(url: str) -> bool:
    """Whether it is an http or https URL with a host."""
    try:
        at = urlsplit(url)
        return at.scheme in ("http", "https") and bool(at.hostname) and (at.port is None or at.port > 0)
    except ValueError:
        return False


def answers(url: str, *, timeout_s: float = 1.0) -> bool:
    """Whether `url` is there with a 2xx. A redirect is none."""
    try:
        return get(url, timeout_s=timeout_s).ok
    except Unanswered:
        return False


def _exchange(method: str, url: str, body: bytes | None, timeout_s: float, max_bytes: int) -> Answer:
    if not is_url(url):
        raise Unanswered(f"{url!r} is no http URL")
    at = urlsplit(url)
    until = time.monotonic() + timeout_s
    kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(str(at.hostname), at.port, timeout=timeout_s)
    except http.client.InvalidURL as e:
        raise Unanswered(f"{url!r} is no http URL ({e})") from None
    with contextlib.ExitStack() as stack:
        try:
            connection.connect()
            sock = stack.enter_context(contextlib.closing(connection.sock))
            connection.sock = _Timed(sock, until)
            target = (at.path or "/") + (f"?{at.query}" if at.query else "")
            headers = {"connection": "close"} | ({"content-type": "application/json"} if body is not None else {})
            connection.request(method, target, body, headers)
            response = stack.enter_context(contextlib.closing(connection.getresponse()))
            read = response.read(max_bytes + 1)
        except TimeoutError:
            raise Unanswered(f"{url} did not answer within {timeout_s:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise Unanswered(f"{url}: {getattr(e, 'strerror', None) or str(e) or type(e).__name__}") from None
    if len(read) > max_bytes:
        raise Unanswered(f"{url} answered with more than {max_bytes} bytes")
    if response.length:  # of the announced bytes these never came; `read` with a bound does not say so
        raise Unanswered(f"{url}: the answer broke off {response.length} bytes before its end")
    return Answer(url, response.status, read)


class _Timed:
    """A socket as http.client uses one, with a deadline over all operations together instead of one for each."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(_left(self._until))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._until))

    def close(self) -> None:
        """Nothing: the answer is read after the connection was let go. `_exchange` closes the socket."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._until))
        return self._sock.recv_into(buffer)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
