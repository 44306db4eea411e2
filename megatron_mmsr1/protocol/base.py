"""The seam: how prompts, calls, observations and answers look as text. A protocol that ships is a file of this room with
`PROTOCOL = <subclass of TurnProtocol>` in it.

A protocol knows the tools only by what `CallForm` says of them, so a new tool needs no change here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.protocol.actions import Action, Call
from megatron_mmsr1.protocol.prompts import Prompts
from megatron_mmsr1.protocol.segments import IM_END, IM_START, Segment, question_data, text


class CallForm(Protocol):
    """What a protocol needs to know of a tool; `tools.Tool` is one."""

    name: str
    tag: str  # the tag of a protocol of tags: <tag>body</tag>
    description: str  # for a protocol that tells the model about its tools

    def read_tag(self, body: str) -> Mapping[str, Any] | None: ...
    def write_tag(self, arguments: Mapping[str, Any]) -> str: ...
    def schema(self) -> dict[str, Any]: ...


@dataclass(slots=True, frozen=True)
class Observed:
    """What a call gave, still without the text around it. `ok` False: `body` is the sentence of a failure."""

    body: list[Segment]
    ok: bool = True
    heading: str = ""  # how a protocol of sentences opens a result: "Searched results: "
    follow_up: str = ""  # the prompt set's text after a result of this tool


class TurnProtocol(ABC):
    """Reads what the model wrote in a turn and writes everything that it did not.

    `tools` are those of the run, in the order in which the model is told of them. Texts are the turn's own, with or without
    its end-of-turn token. Nothing here touches token ids; instances are immutable and shared by all trajectories.
    """

    name: ClassVar[str] = ""
    Settings: ClassVar[type[Section]]
    # For the one who shows a turn while it is sampled (serving): tags that are shown to nobody, and whether a turn without
    # an answer's tags and without a call is an answer.
    silent: ClassVar[tuple[str, ...]] = ()
    plain_answers: ClassVar[bool] = False
    answer_open: ClassVar[str] = "<answer>"
    answer_close: ClassVar[str] = "</answer>"

    def __init__(self, tools: Sequence[CallForm] = (), settings: Section | None = None) -> None:
        self.tools = {t.name: t for t in tools}
        self.settings: Any = settings if settings is not None else self.Settings()  # an instance of `Settings`

    # ---------------------------------------------------------------------------------------------------- read
    @abstractmethod
    def parse(self, text: str) -> Action:
        """The action of an assistant turn. Never raises, in time linear in the text; what cannot be read is `Invalid`."""

    # --------------------------------------------------------------------------------------------------- write
    @abstractmethod
    def write_call(self, call: Call) -> str:
        """A call (and its `others`) as the model writes it, so that `parse(write_call(c)) == c`."""

    @abstractmethod
    def open_call(self, tool: str) -> str:
        """The text of a call up to where the value of its first argument begins; the model goes on from there."""

    @abstractmethod
    def write_reason(self, reason: str) -> str:
        """Reasoning that somebody else wrote, as it stands before a call."""

    def write_answer(self, answer: Segment) -> list[Segment]:
        """An earlier answer of a conversation, without its reasoning and its end-of-turn token."""
        return [text(self.answer_open), answer, text(self.answer_close)]

    def system(self, prompts: Prompts) -> str:
        """The system prompt, "" for none. A protocol whose tools are told to the model tells them here."""
        return prompts.system

    def first_message(self, prompts: Prompts, question: str, n_images: int) -> list[Segment]:
        """The first prompt, up to and including the assistant's opening."""
        system = self.system(prompts)
        before = [text(f"{IM_START}system\n{system}{IM_END}\n")] if system else []
        return [*before, *self.question(prompts, question, n_images)]

    def question(self, prompts: Prompts, question: str, n_images: int) -> list[Segment]:
        """One question with its pictures, up to and including the assistant's opening, without a system prompt."""
        before, after = prompts.first.split("<image>", 1)
        out = [text(f"{IM_START}user\n{before}"), *[Segment("image")] * n_images]
        return [*out, text(after), question_data(question), text(f"{IM_END}\n{IM_START}assistant\n")]

    @abstractmethod
    def observations(self, observed: Sequence[Observed], question: str) -> list[list[Segment]]:
        """The user turn that answers a turn's calls, cut into one message a call, the last up to and including the
        assistant's next opening. It follows the sampled end-of-turn token."""

    # ------------------------------------------------------------------------------------------------- serving
    @property
    @abstractmethod
    def call_opens(self) -> tuple[str, ...]:
        """From any of these on a turn is a call."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the tags that data must not hold, beside those that are defused anyway."""
        return tuple(t.tag for t in self.tools.values())
