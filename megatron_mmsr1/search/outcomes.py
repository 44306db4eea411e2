"""What one call met, where that is not what everyone gets: a failure, or a result that is degraded.

In `record` it is kept under the call's own id and what it asked, in the replays it is the first thing looked for. So a recorded
run's failures come back to the very calls that met them, and stand in the way of nobody else: not of a call that was answered
in full, nor of one that has the same id in another run and asks something else.

A call may be asked again after it failed (rollout/throttle.py does, and a resumed run). Its outcomes are numbered; the last
one is what the run went on with; ANSWERED says that this was what everyone gets.
"""

from __future__ import annotations

import hashlib
from itertools import count

import orjson

from megatron_mmsr1.search.bodies import Body
from megatron_mmsr1.search.cache import Cache
from megatron_mmsr1.search.requests import Request

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
