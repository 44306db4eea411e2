"""What an answer's events make to be shown: thoughts, searches, the answer. Pure; the tabs only draw it."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_mmsr1.trajectory import Status, ToolStatus
from serving.answering import Answered, Delta, SearchEnded, SearchStarted, Step
from serving.chat import Chat, Question


@dataclass(slots=True)
class Thought:
    round: int
    text: str = ""


@dataclass(slots=True)
class Lookup:
    """A search; `ended` is None while it runs."""

    kind: str  # "image" | "text"
    query: str
    round: int
    ended: SearchEnded | None = None


@dataclass(slots=True)
class Reply:
    """One answer in the making. `failed`: why there is none, in words for the person."""

    steps: list[Thought | Lookup] = field(default_factory=list)
    text: str = ""
    outcome: Answered | None = None
    stopped: bool = False
    failed: str = ""

    @property
    def running(self) -> bool:
        return self.outcome is None and not self.stopped and not self.failed

    def feed(self, step: Step) -> None:
        match step:
            case Delta(kind="reasoning"):
                last = self.steps[-1] if self.steps else None
                if not isinstance(last, Thought) or last.round != step.round:
                    last = Thought(step.round)
                    self.steps.append(last)
                last.text += step.text
            case Delta():
                self.text += step.text
            case SearchStarted():
                self.steps.append(Lookup(step.kind, step.query, step.round))
            case SearchEnded():
                open_ = next((s for s in reversed(self.steps) if isinstance(s, Lookup) and s.ended is None), None)
                if open_ is None:
                    open_ = Lookup(step.kind, step.query, step.round)
                    self.steps.append(open_)
                open_.ended = step
            case Answered():
                self.outcome, self.text = step, step.text
                self.failed = trouble(step)

    def end(self) -> None:
        """The events are over; without an outcome somebody stopped them."""
        self.stopped = self.outcome is None and not self.failed

    @property
    def lookups(self) -> list[Lookup]:
        return [s for s in self.steps if isinstance(s, Lookup)]


@dataclass(slots=True)
class Exchange:
    question: str
    images: list[bytes]
    reply: Reply = field(default_factory=Reply)


@dataclass(slots=True)
class Talk:
    """A conversation, kept on the server for as long as the page is open."""

    exchanges: list[Exchange] = field(default_factory=list)

    def chat(self) -> Chat:
        """For the model: what went before with its answers, pictures where they were shown. What was never answered is left
        out, unless a picture would go with it."""
        *before, last = self.exchanges
        said = [Question(e.question, e.images, e.reply.text) for e in before if e.reply.text or e.images]
        return Chat([*said, Question(last.question, last.images)])

    @property
    def pictures(self) -> int:
        return sum(len(e.images) for e in self.exchanges)


def trouble(a: Answered) -> str:
    """Why an answer is missing; "" where there is one."""
    if a.error:
        return a.error
    if a.text:
        return ""
    said = str(a.trajectory.extra.get("error", "")) if a.trajectory is not None else ""
    if a.status is Status.OUT_OF_TOKENS:
        return said or "the answer grew longer than the token limits of this model allow"
    return said or f"the model gave no answer ({a.status.value.replace('_', ' ')})"


STATUS_WORDS = {
    ToolStatus.EMPTY: "nothing found",
    ToolStatus.TIMEOUT: "timed out",
    ToolStatus.RATE_LIMITED: "rate limited",
    ToolStatus.UPSTREAM_ERROR: "search failed",
    ToolStatus.REFUSED: "refused",
    ToolStatus.BUDGET: "budget used up",
}


def outcome_words(e: SearchEnded) -> list[str]:
    """How a search went: results, time, and whatever is unusual."""
    n = len(e.sources)
    words = [f"{n} result{'' if n == 1 else 's'}" if e.status is ToolStatus.OK else STATUS_WORDS[e.status]]
    words.append(f"{e.seconds:.2f} s" if e.seconds >= 0.095 else f"{1000 * e.seconds:.0f} ms")
    words += ["cached"] if e.cached else []
    words += ["incomplete"] if e.degraded else []
    return words
