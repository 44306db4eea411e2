"""One trajectory, alone: sample a turn, read its action, call the tool, append what it found, and again until an answer or a
limit. Training, evaluation, gateway and demo all run conversations here.

Two views of the tokens are kept equal: the trainer's (`Trajectory.token_ids`, pictures expanded), which is the one that is
stored, and the engine's (one pad a picture), which is derived and checked every turn to start with what the engine saw before
and what it sampled.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from megatron_mmsr1 import protocol
from megatron_mmsr1.data.dataset import Prompt
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.protocol import Action, Call, GiveUp, ImageHit, Invalid, TextHit
from megatron_mmsr1.rollout.calls import Observation, observe
from megatron_mmsr1.rollout.context import Context, Message
from megatron_mmsr1.rollout.engine import EngineError, Generation
from megatron_mmsr1.rollout.engines.base import Sampler
from megatron_mmsr1.tools import Picture, Scene
from megatron_mmsr1.trajectory import Status, ToolCall, Trajectory


@dataclass(slots=True, frozen=True)
class Event:
    """What an observer may show while a trajectory runs. `name`: turn_started, turn_ended, tool_started, tool_ended."""

    name: str
    round: int  # from 1
    text: str = ""  # turn_ended: what was said; tool_started: the call's arguments; tool_ended: the observation
    action: str = ""  # tool_started, tool_ended: the tool's name
    kind: str = ""  # the same: the tool's kind
    call: ToolCall | None = None
    hits: tuple[ImageHit | TextHit, ...] = ()  # tool_ended: what was found, pictures as the model sees them


OnEvent = Callable[[Event], Awaitable[None]]
OnTokens = Callable[[int, list[int]], None]  # the round, from 1, and ids as they are sampled


@dataclass(slots=True, frozen=True)
class Opening:
    """The first prompt of a group, rendered once.

    Serving may decide for the model how its first turn begins (`prefix`, whose tokens are the message's last ones) or what it
    searches for first (`forced`, the words of a whole turn). Neither is sampled: both are context, like the rest of the
    message.
    """

    prompt: Prompt
    message: Message
    prefix: str = ""
    forced: str = ""


@dataclass(slots=True, frozen=True)
class Seeds:
    """Where a trajectory's randomness comes from: nothing else decides what a deterministic engine samples."""

    run: int
    step: int
    index: int
    sample: int

    def turn(self, n: int) -> int:
        """63 bits for the n-th turn (from 0)."""
        key = f"{self.run}/{self.step}/{self.index}/{self.sample}/{n}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1


async def open_group(context: Context, prompt: Prompt) -> Opening:
    """Render the first prompt and keep its pictures. Raises ImageError if one of them is no picture."""
    images = [await context.canonical(data) for data in prompt.images]
    segments = context.protocol.first_message(context.prompts, prompt.question, len(images))
    return Opening(prompt, context.message(segments, images, prompt.images))


def opening_tokens(context: Context, prompt: Prompt) -> int:
    """Tokens of the first prompt, pictures included, from the sizes that their headers say. ImageError as `open_group`."""
    segments = context.protocol.first_message(context.prompts, prompt.question, len(prompt.images))
    return len(context.encode(segments)) + sum(context.picture_tokens(data) - 1 for data in prompt.images)


async def run_trajectory(
    context: Context,
    engine: Sampler,
    opening: Opening,
    *,
    seeds: Seeds,
    group_id: str = "",
    temperature: float | None = None,
    on_event: OnEvent | None = None,
    on_tokens: OnTokens | None = None,
) -> Trajectory:
    """A finished trajectory, not yet scored; its status says how it ended. `temperature`: default `rollout.temperature`.

    An engine that fails for good and (by `rollout.tool_failure`) a tool's infrastructure failure end it with a status of their
    own. Raises RunError only if engine and trainer disagree on the tokens, which no retry would mend.
    """
    temperature = context.rollout.temperature if temperature is None else temperature
    tries = 1 + (context.rollout.retries if context.rollout.tool_failure == "retry_trajectory" else 0)
    given_up: list[ToolCall] = []
    for attempt in range(1, tries + 1):
        group = group_id or opening.prompt.prompt_id
        run = _Run(context, engine, opening, seeds, group, temperature, on_event, on_tokens, attempt)
        await run.go()
        if run.trajectory.status is not Status.TOOL_ERROR or attempt == tries:
            # They were made and paid: budget, alarms and counts must see them, whatever the last try met.
            run.trajectory.unobserved[:0] = given_up
            return run.trajectory
        given_up += run.trajectory.tool_calls
    raise AssertionError("unreachable: the last try returns")


@dataclass(slots=True)
class _Run:
    """The state of one try."""

    context: Context
    engine: Sampler
    opening: Opening
    seeds: Seeds
    group_id: str
    temperature: float
    on_event: OnEvent | None
    on_tokens: OnTokens | None
    attempt: int
    trajectory: Trajectory = field(init=False)
    pictures: list[Picture] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)  # the engine's view up to and including the last sampled turn
    used: Counter[str] = field(default_factory=Counter)  # calls by the tool's name

    def __post_init__(self) -> None:
        p = self.opening.prompt
        self.trajectory = Trajectory(
            prompt_id=p.prompt_id,
            group_id=self.group_id,
            sample_index=self.seeds.sample,
            question=p.question,
            golden_answers=list(p.golden_answers),
            category=p.category,
            data_source=p.data_source,
            extra=dict(p.extra),
            calls_allowed=max(1, min(sum(self.context.allowed.values()), self.context.limits.max_rounds - 1)),
        )

    async def go(self) -> None:
        t, limits = self.trajectory, self.context.limits
        self._append("prompt", self.opening.message)
        if len(t) > limits.max_prompt_tokens:
            t.status = Status.OUT_OF_TOKENS
            t.extra["error"] = f"the first prompt has {len(t)} tokens, protocol.max_prompt_tokens is {limits.max_prompt_tokens}"
            return
        try:
            t.status = await self._converse()
        except EngineError as e:
            t.status = Status.ENGINE_ERROR
            t.extra["error"] = str(e)

    async def _converse(self) -> Status:
        first = 1
        if self.opening.forced:
            ended = await self._forced(self.opening.forced)
            if ended is not None:
                return ended
            first = 2
        for number in range(first, self.context.limits.max_rounds + 1):
            generation, action = await self._turn(number)
            if generation.finish == "length":
                return Status.OUT_OF_TOKENS
            if isinstance(action, Invalid):
                return Status.INVALID
            if isinstance(action, GiveUp):
                return Status.GAVE_UP
            if not isinstance(action, Call):
                return Status.ANSWERED
            ended = await self._call(number, action)
            if ended is not None:
                return ended
        raise AssertionError("unreachable: the last round's call ends the trajectory")

    async def _forced(self, text: str) -> Status | None:
        """The first turn as somebody else wrote it: context, and the call that it makes."""
        action = self._parsed(text)
        if not isinstance(action, Call):
            raise ValueError(f"a forced turn must be a call: {text!r}")
        self._append("prompt", self.context.message([protocol.text(text + protocol.IM_END)], []))
        return await self._call(1, action)

    def _parsed(self, text: str) -> Action:
        """The turn's action; a call of a tool that this run does not have is none."""
        action = self.context.protocol.parse(text)
        if isinstance(action, Call):
            unknown = [c.name for c in action.calls if c.name not in self.context.tools]
            if unknown:
                return Invalid(f"there is no tool {unknown[0][:40]!r}: {', '.join(self.context.tools)}")
        return action

    async def _turn(self, number: int) -> tuple[Generation, Action]:
        c, t = self.context, self.trajectory
        await self._tell(Event("turn_started", number))
        ids = t.engine_ids(c.pad_id, c.pictures.merge)
        if ids[: len(self.seen)] != self.seen:
            raise RunError(f"{t.prompt_id}#{t.sample_index}: turn {number} does not continue what the engine saw and sampled")
        generation = await self.engine.generate(
            ids,
            [p.image.png for p in self.pictures],
            max_new_tokens=min(c.limits.max_turn_tokens, self._left()),
            temperature=self.temperature,
            seed=self.seeds.turn(number - 1),
            banned_ids=c.banned_ids,
            **({} if self.on_tokens is None else {"on_tokens": partial(self.on_tokens, number)}),
        )
        if generation.prompt_tokens is not None and generation.prompt_tokens != len(t):
            raise RunError(
                f"{t.prompt_id}#{t.sample_index}: the engine counts {generation.prompt_tokens} prompt tokens, the trainer "
                f"{len(t)}: their image processors differ (compare model.min_pixels and max_pixels with the checkpoint's)"
            )
        text = c.decode(generation.token_ids)
        action = self._parsed(self.opening.prefix + text if number == 1 else text)
        name = "+".join(c.name for c in action.calls) if isinstance(action, Call) else action.name
        versions = generation.weight_versions or [generation.weight_version] * len(generation.token_ids)
        t.append(
            "assistant",
            generation.token_ids,
            text,
            logprobs=generation.logprobs,
            weight_versions=versions,
            action=name,
            seconds=generation.seconds,
        )
        self.seen = ids + generation.token_ids
        await self._tell(Event("turn_ended", number, text, name))
        return generation, action

    async def _call(self, number: int, action: Call) -> Status | None:
        """Make the turn's calls and append what they gave; a status if the trajectory ends here."""
        c, t = self.context, self.trajectory
        self.used.update(call.name for call in action.calls)
        if number == c.limits.max_rounds or any(self.used[x.name] > c.allowed[x.name] for x in action.calls):
            return Status.OUT_OF_ROUNDS
        for call in action.calls:
            tool = c.tools[call.name]
            await self._tell(Event("tool_started", number, tool.shown(call.arguments), call.name, tool.kind))
        seen = await observe(c, action.calls, self._scene(number))
        for call, o in zip(action.calls, seen, strict=True):
            await self._tell(Event("tool_ended", number, o.message.text, call.name, o.call.kind, o.call, o.hits))
        failed = next((o.call for o in seen if o.call.status.infrastructure), None)
        if failed is not None and c.rollout.tool_failure != "neutral_observation":
            t.extra["error"] = f"{failed.kind} tool: {failed.status}: {failed.detail}"
            return self._unobserved(seen, Status.TOOL_ERROR)
        # Text and pictures together or not at all, and with room to answer.
        if sum(len(o.message.ids) for o in seen) >= self._left():
            return self._unobserved(seen, Status.OUT_OF_TOKENS)
        for o in seen:
            self._append("tool", o.message, o.call)
        return None

    def _scene(self, number: int) -> Scene:
        c, t = self.context, self.trajectory
        # The same in every repetition of the run, and nowhere else in it: evaluations ask the same prompts again and again.
        name = f"w{t.weight_versions[-1]}/{self.group_id}/{t.prompt_id}#{t.sample_index}@{number}.{self.attempt}"
        asked = self.opening.prompt.images
        return Scene(t.question, tuple(self.pictures), asked[0] if asked else None, c.search, c.limits.top_k, name, c.picture)

    def _unobserved(self, seen: list[Observation], status: Status) -> Status:
        """The calls were made, though the conversation ends before the model reads of them."""
        self.trajectory.unobserved += [o.call for o in seen]
        return status

    def _append(self, role: str, message: Message, call: ToolCall | None = None) -> None:
        for image in message.images:
            self.context.store.put(image)
        self.pictures += message.pictures
        seconds = call.seconds if call else 0.0
        self.trajectory.append(role, message.ids, message.text, images=message.refs, tool=call, seconds=seconds)

    def _left(self) -> int:
        """Tokens that the conversation after the first prompt may still take."""
        return self.context.limits.max_response_tokens - (len(self.trajectory) - len(self.opening.message.ids))

    async def _tell(self, event: Event) -> None:
        if self.on_event is not None:
            await self.on_event(event)
