"""One question answered with searches: the rollout's own agent, observed. Gateway and app both show what comes out of here.

`Answerer.answer` yields events while the model works. Who stops listening stops the work: the engine's request is aborted and
the tools' calls end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from megatron_mmsr1 import protocol
from megatron_mmsr1.data.store import ImageStore
from megatron_mmsr1.protocol import ImageHit, TextHit
from megatron_mmsr1.rollout.agent import Event, Opening, Seeds, run_trajectory
from megatron_mmsr1.rollout.context import Context, Search
from megatron_mmsr1.rollout.engine import EngineClient, EngineError, Generation
from megatron_mmsr1.rollout.engines.base import Sampler
from megatron_mmsr1.rollout.forced_answer import ForcedAnswer, force_answer
from megatron_mmsr1.search.backends.corpus import words as plain_words
from megatron_mmsr1.tools import Tool
from megatron_mmsr1.trajectory import NOT_CALLS, Status, Trajectory
from serving.chat import open_chat
from serving.split import ANSWER, Decoder, Markup, Splitter, words
from serving.steps import (
    Answered,
    Ask,
    AskError,
    Delta,
    SearchEnded,
    SearchStarted,
    Source,
    Step,
    Usage,
)

__all__ = [
    "Answered",
    "Answerer",
    "Ask",
    "AskError",
    "Delta",
    "SearchEnded",
    "SearchStarted",
    "Source",
    "Step",
    "Usage",
]

# Parts of a required call: the begun one that the model completes, and the whole one that is made for it.
_Required = tuple[str, str]


class Answerer:
    """Over one model's engines and its search servers ("" is the default one). Belongs to one event loop."""

    def __init__(
        self,
        context: Context,
        engine: EngineClient,
        searches: Mapping[str, Search],
        *,
        temperature: float = 0.0,
        forced_reason: str = "I should look this up.",
    ):
        self.context, self.engine, self.searches = context, engine, searches
        self._temperature, self._forced_reason = temperature, forced_reason

    async def answer(self, ask: Ask) -> AsyncGenerator[Step]:
        """Events, an `Answered` last.

        Raises, before the first event: ImageError for a picture that is none, KeyError for an unknown search server, AskError
        for a conversation that is too long and for a required search that nothing may make.
        """
        context = self._context(ask)
        prefix, forced = self._required(ask, context)
        opening = dataclasses.replace(await open_chat(context, ask.chat, prefix), forced=forced)
        tokens, allowed = len(opening.message.ids), context.limits.max_prompt_tokens
        if tokens > allowed:
            raise AskError(f"the conversation has {tokens} tokens; {allowed} are allowed", "context_length_exceeded")
        queue: asyncio.Queue[Step | None] = asyncio.Queue()
        work = asyncio.create_task(_Work(self, context, ask, opening, queue.put_nowait).run())
        work.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (step := await queue.get()) is not None:
                yield step
            await work  # a defect of ours is raised here
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def temperature(self, ask: Ask) -> float:
        return self._temperature if ask.temperature is None else ask.temperature

    def _context(self, ask: Ask) -> Context:
        c = self.context
        limits = c.limits.model_copy()
        wanted = {name for name, tool in c.tools.items() if ask.tools is None or tool.kind in ask.tools}
        total = min(sum(n for name, n in c.allowed.items() if name in wanted), limits.max_rounds - 1)
        if ask.max_searches is not None:
            total = min(total, ask.max_searches)
        allowed = {name: min(n, total) if name in wanted else 0 for name, n in c.allowed.items()}
        limits.max_rounds = total + 1
        if ask.max_tokens is not None:
            limits.max_turn_tokens = min(limits.max_turn_tokens, ask.max_tokens)
        # Each question of a conversation is a first prompt of its own, and each earlier answer a turn.
        earlier = len(ask.chat.questions) - 1
        limits.max_prompt_tokens += earlier * (limits.max_prompt_tokens + c.limits.max_turn_tokens)
        searching = any(n and c.tools[name].price == "search" for name, n in allowed.items())
        search = self.searches[ask.server] if searching or ask.server else None
        # A store of its own, which goes with the answer: nobody's pictures stay.
        return dataclasses.replace(c, limits=limits, allowed=allowed, search=search, store=ImageStore(None))

    def _required(self, ask: Ask, context: Context) -> _Required:
        """(prefix, forced) of a required call: the first tool that can make one. Where its argument is the model's to write
        (`Tool.opens`), the call is begun for it."""
        if not ask.require_search:
            return "", ""
        reason = context.protocol.write_reason(self._forced_reason)
        for tool, arguments in required(ask, context):
            if tool.opens:
                return reason + context.protocol.open_call(tool.name), ""
            return "", reason + context.protocol.write_call(protocol.call(tool.name, arguments))
        raise AskError("a search is required, but none is allowed that could be made: see the tools, and how many searches")


def required(ask: Ask, context: Context) -> Iterator[tuple[Tool, Mapping[str, Any]]]:
    """The calls that could be made for a question that must be searched for, with their arguments, in the tools' order."""
    pictured = any(q.images for q in ask.chat.questions)
    for name, tool in context.tools.items():
        arguments = tool.required(ask.chat.questions[-1].text, pictured) if context.allowed[name] else None
        if arguments is not None:
            yield tool, arguments


class _Work:
    """The making of one answer."""

    def __init__(self, a: Answerer, context: Context, ask: Ask, opening: Opening, tell: Callable[[Step], None]):
        self._a, self._context, self._ask, self._opening, self._tell = a, context, ask, opening, tell
        self._engine = _Counting(a.engine.conversation(_group(ask, opening)), self._count)
        self._sources: list[Source] = []
        self._usage = Usage()
        self._started = time.monotonic()
        # Of the turn that is being sampled, and of the answer as it was told so far.
        self._round = 0
        self._decoder = Decoder(context.decode)
        self._markup = Markup.of(context.protocol)
        self._splitter = Splitter(self._markup)
        self._answering = False
        self._space = ""
        self._text = ""

    async def run(self) -> None:
        trajectory: Trajectory | None = None
        forced: ForcedAnswer | None = None
        status, error = Status.ABORTED, ""
        try:
            async with asyncio.timeout(self._ask.deadline_s):
                trajectory = await self._converse()
                if self._opening.prefix and not self._usage.searches and trajectory.status is not Status.ENGINE_ERROR:
                    trajectory = await self._search_by_question()
                status, error = trajectory.status, str(trajectory.extra.get("error", ""))
                if self._unanswered(trajectory):
                    forced = await self._force_answer(trajectory)
        except TimeoutError:
            status, error = Status.ABORTED, f"no answer within {self._ask.deadline_s:g} s"
        except EngineError as e:
            status, error = Status.ENGINE_ERROR, str(e)
        self._end_turn()
        if not error and not self._text:
            self._answer_at_once(self._answer(trajectory, forced))
        cut = forced.generation.finish == "length" if forced is not None else status is Status.OUT_OF_TOKENS
        self._tell(
            Answered(
                text=self._text,
                sources=self._cited(),
                usage=self._usage,
                seconds=time.monotonic() - self._started,
                finish="length" if cut else "stop",
                status=status,
                trajectory=trajectory,
                forced=forced is not None,
                error=error,
            )
        )

    async def _converse(self) -> Trajectory:
        return await run_trajectory(
            self._context,
            self._engine,
            self._opening,
            seeds=Seeds(self._ask.seed, 0, 0, 0),
            temperature=self._a.temperature(self._ask),
            on_event=self._event,
            on_tokens=self._tokens,
        )

    async def _search_by_question(self) -> Trajectory:
        """A search was required, and the model made no query: the question is one."""
        p = self._context.protocol
        tool, arguments = next((t, a) for t, a in required(self._ask, self._context) if t.opens)
        begun = self._opening.prefix.removesuffix(p.open_call(tool.name))
        opening = await open_chat(self._context, self._ask.chat)
        self._opening = dataclasses.replace(opening, forced=begun + p.write_call(protocol.call(tool.name, arguments)))
        return await self._converse()

    def _unanswered(self, t: Trajectory) -> bool:
        """The last turn asks for a search that is not allowed or for whose results there is no room, or says nothing."""
        last = t.turns[-1]
        if last.role != "assistant":
            return False
        silent = t.status is Status.INVALID and not words(last.text, self._markup)
        return silent or (t.status in (Status.OUT_OF_ROUNDS, Status.OUT_OF_TOKENS) and last.action not in NOT_CALLS)

    async def _force_answer(self, t: Trajectory) -> ForcedAnswer:
        """An answer from what was found so far."""
        number = len(t.assistant_texts) + bool(self._opening.forced) + 1
        self._begin(number, inside=True)
        return await force_answer(
            self._context,
            self._engine,
            t,
            [self._context.store.get(i.sha256) for i in t.images],
            temperature=self._a.temperature(self._ask),
            seed=Seeds(self._ask.seed, 0, 0, 0).turn(number),
            max_new_tokens=self._context.limits.max_turn_tokens,
            on_tokens=lambda _, ids: self._tokens(number, ids),
        )

    # ------------------------------------------------------------------------------------------------- what is observed
    async def _event(self, e: Event) -> None:
        if e.name == "turn_started":
            self._begin(e.round, inside=False)
        elif e.name == "turn_ended":
            self._end_turn()
        elif e.name == "tool_started":
            self._usage = dataclasses.replace(self._usage, searches=self._usage.searches + 1)
            self._tell(SearchStarted(e.kind, e.text, e.round))
        elif e.name == "tool_ended" and e.call is not None:
            c = e.call
            found = tuple(self._source(n, c.kind, h) for n, h in enumerate(e.hits, len(self._sources) + 1))
            # What is no source of an answer (a closer look at a picture) is shown with its call only.
            self._sources += found if self._context.tools[e.action].cites else ()
            self._tell(
                SearchEnded(c.kind, c.query, e.round, c.status, c.seconds, c.cached, c.degraded, c.backend, c.detail, found)
            )

    def _begin(self, number: int, *, inside: bool) -> None:
        self._round = number
        self._decoder = Decoder(self._context.decode)
        self._splitter = Splitter(self._markup, inside=inside, query=number == 1 and bool(self._opening.prefix))
        self._answering = False
        self._space = ""

    def _tokens(self, number: int, ids: list[int]) -> None:
        self._show(self._splitter.feed(self._decoder.feed(ids)))

    def _end_turn(self) -> None:
        self._show(self._splitter.feed(self._decoder.end()))
        self._show(self._splitter.end())

    def _show(self, parts: Iterable[tuple[str, str]]) -> None:
        for kind, text in parts:
            if kind != ANSWER:
                self._answering, self._space = False, ""
            shown = self._trimmed(text) if kind == ANSWER else text
            if shown:
                self._tell(Delta(kind, shown, self._round))

    def _trimmed(self, text: str) -> str:
        """A piece of the answer, without white space at the answer's begin and end; a second answer begins a paragraph."""
        text = self._space + text
        body = text.rstrip()
        if not self._answering:
            body = body.lstrip()
        if not body:
            self._space = text if self._answering else ""
            return ""
        self._space = text[len(text.rstrip()) :]
        if not self._answering and self._text:
            body = "\n\n" + body
        self._answering = True
        self._text += body
        return body

    def _answer_at_once(self, text: str) -> None:
        """An answer that came without an answer's tags, or beside them."""
        self._answering, self._space = False, ""
        self._show([(ANSWER, text)])

    def _answer(self, t: Trajectory | None, forced: ForcedAnswer | None) -> str:
        """What was answered by a model that showed no answer while it spoke: the sentence that gives up, or its own words."""
        if forced is not None:
            return words(forced.text, self._markup)
        if t is None or t.turns[-1].role != "assistant":
            return ""
        last = t.turns[-1].text
        action = self._context.protocol.parse((self._opening.prefix if len(t.assistant_texts) == 1 else "") + last)
        if isinstance(action, protocol.Answer):
            return action.text
        if isinstance(action, protocol.GiveUp):
            return protocol.GIVE_UP
        return words(last, self._markup) if t.status is Status.INVALID else ""

    def _count(self, g: Generation) -> None:
        u = self._usage
        self._usage = dataclasses.replace(
            u,
            prompt_tokens=u.prompt_tokens + (g.prompt_tokens or 0),
            completion_tokens=u.completion_tokens + len(g.token_ids),
            cached_tokens=u.cached_tokens + g.cached_tokens,
        )

    @staticmethod
    def _source(n: int, kind: str, hit: ImageHit | TextHit) -> Source:
        if isinstance(hit, ImageHit):
            return Source(n, kind, hit.title, hit.url, image=hit.image)
        return Source(n, kind, hit.title, hit.link, text=hit.summary)

    def _cited(self) -> tuple[Source, ...]:
        want = _spaced(self._text)
        said = bool(want.strip())
        return tuple(dataclasses.replace(s, supports=said and want in _spaced(f"{s.title} {s.text}")) for s in self._sources)


def _spaced(text: str) -> str:
    """Whole words, so that "no" does not occur in "nothing"."""
    return f" {' '.join(plain_words(text))} "


def _group(ask: Ask, opening: Opening) -> str:
    """The same for all turns of a conversation and for the questions that follow: they go where its beginning is cached."""
    picture = opening.message.images[0].sha256 if opening.message.images else ""
    said = f"{ask.chat.system}\0{ask.chat.questions[0].text}\0{picture}"
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class _Counting:
    """An engine whose turns are counted."""

    def __init__(self, engine: Sampler, count: Callable[[Generation], None]):
        self._engine, self._count = engine, count

    async def generate(self, engine_ids: Sequence[int], images: Sequence[bytes], **options: Any) -> Generation:
        g = await self._engine.generate(engine_ids, images, **options)
        self._count(g)
        return g
