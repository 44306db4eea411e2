"""The tool calls of one turn: run, recorded with a typed outcome, and rendered as the observation that the model reads."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_mmsr1.data.images import CanonicalImage
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.protocol import Call, ImageHit, Observed, TextHit
from megatron_mmsr1.rollout.context import Context, Message
from megatron_mmsr1.tools import ArgumentsError, Result, Scene, Tool
from megatron_mmsr1.trajectory import ToolCall, ToolStatus


@dataclass(slots=True, frozen=True)
class Observation:
    """`message`: what follows in the conversation; those of one turn's calls belong together."""

    call: ToolCall
    message: Message
    hits: tuple[ImageHit | TextHit, ...] = ()


async def observe(context: Context, calls: Sequence[Call], scene: Scene) -> list[Observation]:
    """Run the calls of one turn at once and render what came back, an observation a call, in order.

    `scene.call` is the name of the first; the n-th further one is called `NAME+n`. OK and EMPTY are results; every other status
    is the tool's own sentence of a failure. Raises RunError, which names the file, if a tool raises.
    """
    names = [scene.call + (f"+{n}" if n else "") for n in range(len(calls))]
    done = await asyncio.gather(
        *(_run(context, c, replace(scene, call=name)) for c, name in zip(calls, names, strict=True)),
    )
    tools = [context.tools[c.name] for c in calls]
    shown = [_observed(context, tool, result) for tool, result in zip(tools, done, strict=True)]
    messages = context.protocol.observations(shown, scene.question)
    return [
        Observation(
            _record(tool, c, result),
            context.message(segments, *_pictures(result)),
            result.hits if result.status.good else (),
        )
        for tool, c, result, segments in zip(tools, calls, done, messages, strict=True)
    ]


async def _run(context: Context, call: Call, scene: Scene) -> Result:
    tool = context.tools[call.name]
    started = time.monotonic()
    try:
        arguments = tool.read(call.arguments)
    except ArgumentsError as e:
        return Result.refused(str(e))
    limit = asyncio.timeout(None if tool.own_deadline else context.rollout.tool_timeout_s)
    try:
        async with limit:
            result = await tool.run(arguments, scene)
    except RunError:
        raise
    except Exception as e:  # whatever a person's own tool raises is a defect, and must not pass for an outage
        if not (isinstance(e, TimeoutError) and limit.expired()):
            raise _defect(tool, e) from e
        late = f"no result within rollout.tool_timeout_s={context.rollout.tool_timeout_s:g} s"
        return Result(ToolStatus.TIMEOUT, detail=late, seconds=time.monotonic() - started)
    if not isinstance(result, Result):
        raise _defect(tool, TypeError(f"run must return a Result, not {type(result).__name__}"))
    return result if result.seconds else replace(result, seconds=time.monotonic() - started)


def _defect(tool: Tool, e: Exception) -> RunError:
    return RunError(f"the tool {tool.name} ({inspect.getfile(type(tool))}) raised {type(e).__name__}: {e}")


def _observed(context: Context, tool: Tool, result: Result) -> Observed:
    if not result.status.good:
        return Observed(tool.failure(result), ok=False)
    return Observed(result.body, True, tool.heading, context.prompts.after_call(tool.name))


def _pictures(result: Result) -> tuple[list[CanonicalImage], list[bytes]]:
    if not result.status.good:
        return [], []
    return [p.image for p in result.pictures], [p.original for p in result.pictures]


def _record(tool: Tool, call: Call, r: Result) -> ToolCall:
    return ToolCall(
        tool.kind, tool.shown(call.arguments), r.status, r.seconds, r.results, r.cached, r.backend, r.detail, r.degraded
    )
