"""The app's login where the gateway has keys: a browser asks for a name, which may be anything, and a password, which is a key.

The API has its own check, of bearer keys. Everything else that is served beside it is the app's and needs this login.
"""

from __future__ import annotations

import base64
import binascii

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.keys import Keys

# The gateway's own, which asks for keys itself where it must.
OPEN = ("/v1/", "/health", "/metrics", "/openapi.json")


class AppLogin:
    """ASGI middleware around the gateway with its app."""

    def __init__(self, app: ASGIApp, keys: Keys):
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and _is_api(scope["path"])):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif self._keys.name(_password(_header(scope, b"authorization"))) is None:
            why = "a key of this gateway is the password; the name may be anything"
            asks = {"www-authenticate": 'Basic realm="mmsr1", charset="UTF-8"', "cache-control": "no-store"}
            await PlainTextResponse(why, 401, asks)(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD") and _header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            # A browser sends the password along with whatever another site has it post.
            await PlainTextResponse("not from another site", 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_api(path: str) -> bool:
    return path.startswith(OPEN[0]) or path in OPEN[1:]


def _header(scope: Scope, name: bytes) -> str:
    return next((v for k, v in scope["headers"] if k == name), b"").decode("latin-1")


def _password(authorization: str) -> str:
    """Of HTTP Basic; "" for anything else."""
    scheme, _, said = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(said.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
