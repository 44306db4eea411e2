"""One question answered with searches: the rollout's own agent, observed. Gateway and app both show what comes out of here.

`Answerer.answer` yields events while the model works. Who stops listening stops the work: the engine's request is aborted and
the tools' calls end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_mmsr1 import protocol
from megatron_mmsr1.data.store import ImageStore
from megatron_mmsr1.protocol import ImageHit, TextHit
from megatron_mmsr1.rollout.agent import Event, Opening, Seeds, run_trajectory
from megatron_mmsr1.rollout.context import Context, Engine, Search
from megatron_mmsr1.rollout.engine import EngineClient, EngineError, Generation
from megatron_mmsr1.rollout.insist import Insisted, insist
from megatron_mmsr1.search.words import normalise
from megatron_mmsr1.trajectory import Status, ToolStatus, Trajectory
from serving.chat import Chat, open_chat
from serving.split import ANSWER, Decoder, Splitter

TOOLS = ("image", "text")


@dataclass(slots=True)
class Ask:
    """A question with what the caller wants of it. None: the configured limit; a request may only lower one.

    `require_search`: the first turn is a search, whatever the model would have done. `server`: the NAME of a configured search
    server. `seed` makes the sampling repeatable where the engine can: it is `Seeds.run` of a rollout's first
    prompt of step 0.
    """

    chat: Chat
    tools: tuple[str, ...] = TOOLS
    max_searches: int | None = None
    deadline_s: float | None = None
    server: str = ""
    require_search: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int = 0


@dataclass(slots=True, frozen=True)
class Source:
    """Something that was found. `n` counts from 1 over all searches of the answer; `supports`: the answer occurs in it."""

    n: int
    kind: str  # "image" | "text"
    title: str
    url: str
    text: str = ""
    image: bytes | None = None  # PNG
    supports: bool = False


@dataclass(slots=True, frozen=True)
class Delta:
    """Text as it is sampled. `kind`: "reasoning" or "answer"."""

    kind: str
    text: str
    round: int


@dataclass(slots=True, frozen=True)
class SearchStarted:
    kind: str
    query: str
    round: int


@dataclass(slots=True, frozen=True)
class SearchEnded:
    kind: str
    query: str
    round: int
    status: ToolStatus
    seconds: float
    cached: bool
    degraded: bool
    backend: str
    detail: str
    sources: tuple[Source, ...]


@dataclass(slots=True, frozen=True)
class Usage:
    """Over all turns: tokens that the engine read and sampled (`cached` of those read were in its prefix cache), searches
    made."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    searches: int = 0


@dataclass(slots=True, frozen=True)
class Answered:
    """The last event. `error` is set where the engine failed or time ran out; `insisted`: the searches were used up, and the
    model was made to answer."""

    text: str
    sources: tuple[Source, ...]
    usage: Usage
    seconds: float
    finish: str  # "stop" | "length"
    status: Status
    trajectory: Trajectory | None
    insisted: bool = False
    error: str = ""


Step = Delta | SearchStarted | SearchEnded | Answered


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

    async def answer(self, ask: Ask) -> AsyncIterator[Step]:
        """Events, an `Answered` last. Raises ImageError for a picture that is none, KeyError for an unknown search server."""
        context = self._context(ask)
        prefix, forced = self._required(ask)
        opening = dataclasses.replace(await open_chat(context, ask.chat, prefix), forced=forced)
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
        limits.image_searches = c.limits.image_searches if "image" in ask.tools else 0
        limits.text_searches = c.limits.text_searches if "text" in ask.tools else 0
        total = limits.image_searches + limits.text_searches
        if ask.max_searches is not None:
            total = min(total, ask.max_searches)
            limits.image_searches = min(limits.image_searches, total)
            limits.text_searches = min(limits.text_searches, total)
        limits.max_rounds = min(limits.max_rounds, total + 1)
        if ask.max_tokens is not None:
            limits.max_turn_tokens = min(limits.max_turn_tokens, ask.max_tokens)
        search = self.searches[ask.server] if total else None
        # A store of its own, which goes with the answer: nobody's pictures stay.
        return dataclasses.replace(c, limits=limits, search=search, store=ImageStore(None))

    def _required(self, ask: Ask) -> tuple[str, str]:
        """(prefix, forced) of a required search: by the picture where there is one, else by a query of the model's own
        making."""
        if not ask.require_search:
            return "", ""
        reason = f"<reason>{self._forced_reason}</reason>"
        if "image" in ask.tools and any(q.images for q in ask.chat.questions):
            return "", reason + protocol.IMAGE_SEARCH
        return reason + "<text_search>", ""


class _Work:
    """The making of one answer."""

    def __init__(self, a: Answerer, context: Context, ask: Ask, opening: Opening, tell: Callable[[Step], None]):
        self._a, self._context, self._ask, self._opening, self._tell = a, context, ask, opening, tell
        self._sources: list[Source] = []
        self._usage = Usage()
        self._round = 0
        self._decoder = Decoder(context.decode)
        self._splitter = Splitter()
        self._streamed = ""  # of the answer
        self._started = time.monotonic()

    async def run(self) -> None:
        trajectory: Trajectory | None = None
        insisted: Insisted | None = None
        error = ""
        try:
            async with asyncio.timeout(self._ask.deadline_s):
                trajectory = await self._converse()
                if trajectory.status is Status.OUT_OF_ROUNDS:
                    insisted = await self._insist(trajectory)
        except TimeoutError:
            error = f"no answer within {self._ask.deadline_s:g} s"
        except EngineError as e:
            error = str(e)
        self._end_turn()
        if trajectory is not None and trajectory.status is Status.ENGINE_ERROR:
            error = str(trajectory.extra.get("error"))
        self._tell(self._answered(trajectory, insisted, error))

    async def _converse(self) -> Trajectory:
        return await run_trajectory(
            self._context,
            _Counting(self._a.engine.conversation(""), self._count),
            self._opening,
            seeds=Seeds(self._ask.seed, 0, 0, 0),
            temperature=self._a.temperature(self._ask),
            on_event=self._event,
            on_tokens=self._tokens,
        )

    async def _insist(self, t: Trajectory) -> Insisted:
        """The searches are used up: an answer from what was found so far."""
        number = len(t.assistant_texts) + 1
        self._begin(number, inside=True)
        return await insist(
            self._context,
            _Counting(self._a.engine.conversation(""), self._count),
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
            kind = "image" if e.action == "image_search" else "text"
            self._tell(SearchStarted(kind, e.text, e.round))
        elif e.name == "tool_ended" and e.call is not None:
            c = e.call
            found = tuple(self._source(c.kind, h) for h in e.hits)
            self._sources += found
            self._tell(
                SearchEnded(c.kind, c.query, e.round, c.status, c.seconds, c.cached, c.degraded, c.backend, c.detail, found)
            )

    def _begin(self, number: int, *, inside: bool) -> None:
        self._round = number
        self._decoder = Decoder(self._context.decode)
        self._splitter = Splitter(inside=inside, query=number == 1 and self._opening.prefix.endswith("<text_search>"))
        self._streamed = ""

    def _tokens(self, number: int, ids: list[int]) -> None:
        self._show(self._splitter.feed(self._decoder.feed(ids)))

    def _end_turn(self) -> None:
        self._show(self._splitter.end())

    def _show(self, parts: Iterable[tuple[str, str]]) -> None:
        for kind, text in parts:
            if kind == ANSWER and not self._streamed:
                text = text.lstrip()
            self._streamed += text if kind == ANSWER else ""
            if text:
                self._tell(Delta(kind, text, self._round))

    def _count(self, g: Generation) -> None:
        u = self._usage
        self._usage = dataclasses.replace(
            u,
            prompt_tokens=u.prompt_tokens + (g.prompt_tokens or 0),
            completion_tokens=u.completion_tokens + len(g.token_ids),
            cached_tokens=u.cached_tokens + g.cached_tokens,
        )

    # ------------------------------------------------------------------------------------------------------- the outcome
    def _source(self, kind: str, hit: ImageHit | TextHit) -> Source:
        n = len(self._sources) + 1
        if isinstance(hit, ImageHit):
            return Source(n, kind, hit.title, hit.url, image=hit.image)
        return Source(n, kind, hit.title, hit.link, text=hit.summary)

    def _answered(self, t: Trajectory | None, insisted: Insisted | None, error: str) -> Answered:
        text = _answer(t, insisted, self._opening) or self._streamed.strip()
        if text and not self._streamed:  # said without the tags of an answer
            self._tell(Delta(ANSWER, text, self._round))
        want = normalise(text)
        sources = tuple(
            dataclasses.replace(s, n=n, supports=bool(want) and want in normalise(f"{s.title} {s.text}"))
            for n, s in enumerate(self._sources, 1)
        )
        calls = len(t.tool_calls) if t is not None else len({s.n for s in sources})
        cut = t is not None and t.status is Status.OUT_OF_TOKENS
        return Answered(
            text,
            sources,
            dataclasses.replace(self._usage, searches=calls),
            time.monotonic() - self._started,
            "length" if cut else "stop",
            t.status if t is not None else Status.ABORTED,
            t,
            insisted is not None,
            error,
        )


def _answer(t: Trajectory | None, insisted: Insisted | None, opening: Opening) -> str:
    """What was answered: between the tags, or the last turn's own words where the model used none."""
    if insisted is not None:
        return insisted.answer
    if t is None or not t.assistant_texts or t.turns[-1].role != "assistant":
        return ""
    last = t.turns[-1].text
    action = protocol.parse_action((opening.prefix if len(t.assistant_texts) == 1 else "") + last)
    if isinstance(action, protocol.Answer):
        return action.text
    if isinstance(action, protocol.GiveUp):
        return protocol.GIVE_UP
    return protocol.strip_end(last).strip() if t.status is Status.INVALID else ""


class _Counting:
    """An engine whose turns are counted."""

    def __init__(self, engine: Engine, count: Callable[[Generation], None]):
        self._engine, self._count = engine, count

    async def generate(self, engine_ids: Sequence[int], images: Sequence[bytes], **options: Any) -> Generation:
        g = await self._engine.generate(engine_ids, images, **options)
        self._count(g)
        return g
