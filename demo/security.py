"""What the app answers at all, and what a browser may do with it.

Gradio serves far more than this page asks for: file proxies, an editor, run histories, open API calls. Here only what the page
needs is let through, and no request can make the server fetch an address.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
GET = re.compile(
    rf"/|/(?:assets|static)/[\w./-]+|/theme\.css|/favicon\.ico|/manifest\.json|/config/?"
    rf"|{API}/(?:info|app_id|startup-events|upload_progress|queue/data|heartbeat/\w+|file=/.+)"
)
POST = re.compile(rf"{API}/(?:queue/join|cancel|upload)/?")
JSON_BYTES = 1_000_000  # of an event: a question and the controls' values
_SCRIPT = re.compile(rb"<script(?P<with>[^>]*)>(?P<body>.*?)</script>", re.DOTALL)
_BASE = re.compile(rb'<base href="\./" ?/?>')

# Gradio sets styles by attribute and writes its theme into <style>; all else is files of ours. No `unsafe-eval`, and inline
# scripts only those whose hashes are named: the page's own.
POLICY = (
    "default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; frame-src 'none'; worker-src 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


def policy(page: bytes = b"") -> str:
    """The Content-Security-Policy of a page, with the hashes of its inline scripts."""
    bodies = [m["body"] for m in _SCRIPT.finditer(page) if b" src=" not in m["with"] and m["body"]]
    hashes = [base64.b64encode(hashlib.sha256(b).digest()).decode() for b in bodies]
    return POLICY.format(hashes="".join(f" 'sha256-{h}'" for h in dict.fromkeys(hashes)))


class Guard:
    """ASGI middleware around the mounted app."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        allowed = {"GET": GET, "HEAD": GET, "POST": POST}.get(scope["method"])
        if allowed is None or not allowed.fullmatch(path):
            await _refuse(send, 404, "not found")
        elif path == "/":
            # Compressed it could not be read here.
            plain = [(k, v) for k, v in scope["headers"] if k != b"accept-encoding"]
            await self._app({**scope, "headers": plain}, receive, _Page(send))
        elif path.startswith(f"{API}/queue/join"):
            body = await _body(receive)
            why = "too large" if body is None else fault(body)
            if body is None or why:
                await _refuse(send, 413 if body is None else 400, why)
                return
            await self._app(scope, _replay(body, receive), _headers(send))
        else:
            await self._app(scope, receive, _headers(send))


def fault(body: bytes) -> str:
    """Why an event must not reach Gradio, which would download a file that is named by an address; "" if it may."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "not JSON"
    for d in _dicts(data):
        url = d.get("url")
        # What Gradio reads is the path; the address that it gave a file of its own comes back with it.
        if _remote(d.get("path")) or (_remote(url) and f"{API}/file=/" not in str(url)):
            return "a file must be uploaded, not named by its address"
    return ""


def _remote(value: Any) -> bool:
    """Whether it names another place: any scheme, `//host` or a share. The page's own uploads have bare paths."""
    if not isinstance(value, str):
        return value is not None
    return bool(re.match(r"\s*(?:[a-zA-Z][\w+.-]*:|//|\\)", value))


def _dicts(data: Any) -> Iterator[dict[str, Any]]:
    todo = [data]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo += item.values()
        elif isinstance(item, list):
            todo += item


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        part = message.get("body", b"")
        size += len(part)
        if size > JSON_BYTES:
            return None
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with(message: Message, more: dict[str, str]) -> Message:
    names = {k.encode() for k in more}
    kept = [(k, v) for k, v in message.get("headers", []) if k.lower() not in names]
    return {**message, "headers": [*kept, *((k.encode(), v.encode()) for k, v in more.items())]}


def _headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = _with(message, {**HEADERS, "content-security-policy": policy()})
        await send(message)

    return with_headers


class _Page:
    """Sends the one page whole, since its header holds what its body's scripts hash to."""

    def __init__(self, send: Send):
        self._send = send
        self._start: Message = {}
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body"):
            return
        # It says what is so without it, and the policy forbids it: an injected one would move every address.
        page = _BASE.sub(b"", b"".join(self._parts))
        headers = {**HEADERS, "content-security-policy": policy(page), "cache-control": "no-store"}
        if page:
            headers["content-length"] = str(len(page))
        await self._send(_with(self._start, headers))
        await self._send({"type": "http.response.body", "body": page})


async def _refuse(send: Send, status: int, why: str) -> None:
    body = orjson.dumps({"detail": why})
    start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
    await send(_with(start, {**HEADERS, "content-security-policy": policy(), "content-length": str(len(body))}))
    await send({"type": "http.response.body", "body": body})
