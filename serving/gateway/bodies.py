"""A request's body, read within a cap and a time."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from serving.gateway.errors import ApiError

READ_S = 30.0  # for the whole body, however slowly it drips
LINGER_S = 5.0
LINGER_BYTES = 256 * 2**20


class Disconnected(Exception):
    """The client went away before its request was whole."""


class TooLarge(ApiError):
    def __init__(self, limit: int):
        super().__init__(413, f"the body is larger than {limit} bytes", code="body_too_large", headers={"connection": "close"})


async def read(scope: Scope, receive: Receive, limit: int, *, within_s: float = READ_S) -> bytes:
    """Raises ApiError: 415 for what is not JSON, 413 past `limit` bytes (at once where the length is announced), 408 after
    `within_s` seconds. Raises Disconnected."""
    headers = dict(scope["headers"])
    if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
        raise ApiError(415, "send the body as application/json", code="unsupported_media_type")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        raise TooLarge(limit)
    try:
        async with asyncio.timeout(within_s):
            return await _read(receive, limit)
    except TimeoutError:
        why = f"the body did not come within {within_s:g} s"
        raise ApiError(408, why, code="request_timeout", headers={"connection": "close"}) from None


async def _read(receive: Receive, limit: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise TooLarge(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def refuse(e: ApiError, receive: Receive, send: Send) -> None:
    """Send an error whose request is still coming: a client that is in the middle of it would lose the answer if the
    connection closed at once."""
    response = e.response()
    await send({"type": "http.response.start", "status": e.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    left = LINGER_BYTES
    try:
        async with asyncio.timeout(LINGER_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        left = 0
    await send({"type": "http.response.body", "body": b""})
