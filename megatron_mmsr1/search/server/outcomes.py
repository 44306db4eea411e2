"""What one call met, where that is not what everyone gets: a failure, or a result that is degraded.

In `record` it is kept under the call's own id and what it asked, in the replays it is the first thing looked for. So a recorded
run's failures come back to the very calls that met them, and stand in the way of nobody else: not of a call that was answered
in full, nor of one that has the same id in another run and asks something else.

A call may be asked again after it failed (rollout/throttle.py does, and a resumed run). Its outcomes are numbered; the last
one is what the run went on with; ANSWERED says that this was what everyone gets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import count
from typing import Any, NoReturn

import orjson

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import ImageResult, Page, SearchFailure, TextResult
from megatron_mmsr1.search.server.bodies import Body
from megatron_mmsr1.search.server.compose import Backends
from megatron_mmsr1.search.store.cache import Cache
from megatron_mmsr1.search.wire import Request
from megatron_mmsr1.trajectory import ToolStatus

KIND = "outcome"
ANSWERED = b"answered"


def find(cache: Cache, op: str, call: str, request: Request) -> Body | None:
    """The reply that this call got when the snapshot was recorded; None where it got what everyone gets."""
    if not call or not cache.replays:
        return None
    _, last = _held(cache, _name(op, call, request))
    return None if last in (None, ANSWERED) else {**orjson.loads(last), "cached": True}


async def keep(cache: Cache, op: str, call: str, request: Request, body: Body, *, failed: bool) -> None:
    """Record `body`, if it is one of a kind. `failed`: it holds no result, whatever its status. Raises SearchFailure if it
    cannot be kept."""
    if not call or cache.mode != "record":
        return
    name = _name(op, call, request)
    n, last = _held(cache, name)
    now = orjson.dumps(body) if failed or body.get("degraded") else ANSWERED
    if now != (last or ANSWERED):
        await cache.put(_key(name, n), KIND, now)


def _held(cache: Cache, name: bytes) -> tuple[int, bytes | None]:
    """How many outcomes of a call there are, and the last."""
    last = None
    for n in count():
        held = cache.get(_key(name, n))
        if held is None:
            return n, last
        last = held
    raise AssertionError("unreachable")


def _name(op: str, call: str, request: Request) -> bytes:
    asked = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
    return orjson.dumps([KIND, op, call, asked])


def _key(name: bytes, n: int) -> bytes:
    return hashlib.sha256(b"%d %b" % (n, name)).digest()


# The backends of a snapshot, as names only: replay-strict needs no keys, no corpus and no weights, and cannot reach
# anything.
class Replayed:
    """Stands where a backend stood when the snapshot was recorded; whatever would reach it is a failure."""

    def __init__(self, name: str, version: str, local: bool):
        self.name, self.version, self.local = name, version, local

    async def read(self, url: str) -> Page:
        self._refuse()

    async def summarise(self, query: str, page_text: str) -> str:
        self._refuse()

    async def close(self) -> None:
        pass

    def _refuse(self) -> NoReturn:
        raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"search.mode is replay-strict: {self.name} is not asked")


class ReplayedText(Replayed):
    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        self._refuse()


class ReplayedImage(Replayed):
    async def search(self, image: bytes, k: int) -> Sequence[ImageResult]:
        self._refuse()


def replayed(cfg: SearchConfig, recorded: dict[str, dict[str, Any]], where: str) -> Backends:
    """What `recorded` (the store's own note of its backends) names. UsageError if the config names another backend."""
    for kind in ("text", "image", "read", "summarise"):
        asked = getattr(cfg, kind).backend
        held = recorded.get(kind, {}).get("name", "none")
        default = type(cfg).model_fields[kind].default.backend
        if asked not in (held, "auto", default):
            raise UsageError(f"search.{kind}.backend={asked}, but {where} was recorded with {held}: replay it with that")
    if "text" not in recorded:
        raise UsageError(f"{where} does not say which backends it was recorded with: it cannot be replayed strictly")
    made = {kind: _make(kind, r) for kind, r in recorded.items()}
    return Backends(made["text"], made.get("image"), made.get("read"), made.get("summarise"))


def _make(kind: str, r: dict[str, Any]) -> Any:
    cls = {"text": ReplayedText, "image": ReplayedImage}.get(kind, Replayed)
    return cls(r["name"], r["version"], r["local"])
