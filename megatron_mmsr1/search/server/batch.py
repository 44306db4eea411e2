"""Many calls in one request: `POST /v1/batch`. A step's thousands of searches cost a tenth of what as many requests would.

In: {"calls": [{"op": "text", "call": "an id or nothing", "body": {...}}, ...]}. Out, as each is done and in that order: a line
`PLACE CODE JSON`, PLACE being the call's place in the request and CODE and JSON what its own endpoint would have answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from megatron_mmsr1.search import wire as requests
from megatron_mmsr1.search.server.bodies import explain
from megatron_mmsr1.search.server.calls import Caller, Calls
from megatron_mmsr1.search.upstream.ledger import Account
from megatron_mmsr1.trajectory import ToolStatus

MEDIA_TYPE = "text/plain; charset=utf-8"


def parse(body: bytes) -> requests.BatchRequest:
    """Raises HTTPException 400 for what is no batch; a single bad call in it is only that call's failure."""
    try:
        return requests.BatchRequest.model_validate_json(body)
    except ValidationError as e:
        raise HTTPException(400, explain(e)) from None


async def run(calls: Calls, batch: requests.BatchRequest, who: Account) -> AsyncIterator[bytes]:
    """The reply's lines. Should the caller go away, the calls end with it (what they wait for goes on, for others)."""
    done: asyncio.Queue[bytes] = asyncio.Queue()

    async def one(place: int, call: requests.BatchedCall) -> None:
        code, reply = await _answer(calls, call, Caller(who, call.call))
        done.put_nowait(b"%d %d %b\n" % (place, code, reply))

    loop = asyncio.get_running_loop()
    # Eager: what the store holds is answered before the first of the others waits.
    tasks = [asyncio.Task(one(n, c), loop=loop, eager_start=True) for n, c in enumerate(batch.calls)]
    try:
        left = len(tasks)
        while left:
            lines = [await done.get()]
            while not done.empty():
                lines.append(done.get_nowait())
            left -= len(lines)
            yield b"".join(lines)
    finally:
        for t in tasks:
            t.cancel()


async def _answer(calls: Calls, call: requests.BatchedCall, caller: Caller) -> tuple[int, bytes]:
    """Always an answer: a call without one would hold up its batch for ever."""
    try:
        return 200, orjson.dumps(await calls.answer(call.op, call.body, caller))
    except HTTPException as e:
        status = ToolStatus.RATE_LIMITED if e.status_code == 429 else ToolStatus.REFUSED
        return e.status_code, orjson.dumps({"status": status, "detail": e.detail})
    except Exception as e:  # a defect costs its call, not the batch
        logging.getLogger(__name__).exception("a call of a batch failed")
        why = f"the search server failed ({type(e).__name__}); its log has the trace"
        return 500, orjson.dumps({"status": ToolStatus.UPSTREAM_ERROR, "detail": why})
