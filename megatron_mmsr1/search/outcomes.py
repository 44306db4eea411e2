"""What one call met, where that is not what everyone gets: a failure, or a result that is degraded.

In `record` it is kept under the call's own id, in the replays it is the first thing looked for. So a recorded run's failures
come back to the very calls that met them, and do not stand in the way of those that were answered in full.
"""

from __future__ import annotations

import hashlib

import orjson

from megatron_mmsr1.search.bodies import Body
from megatron_mmsr1.search.cache import Cache
from megatron_mmsr1.trajectory import ToolStatus

KIND = "outcome"


def find(cache: Cache, op: str, call: str) -> Body | None:
    """The reply that this call got when the snapshot was recorded; None where it got what everyone gets."""
    if not call or not cache.replays:
        return None
    held = cache.get(_key(op, call))
    return None if held is None else {**orjson.loads(held), "cached": True}


async def keep(cache: Cache, op: str, call: str, body: Body) -> None:
    """Record `body`, if it is one of a kind."""
    if not call or cache.mode != "record":
        return
    if body["status"] not in (ToolStatus.OK, ToolStatus.EMPTY) or body.get("degraded"):
        await cache.put(_key(op, call), KIND, orjson.dumps(body))


def _key(op: str, call: str) -> bytes:
    return hashlib.sha256(orjson.dumps([KIND, op, call])).digest()
