"""What an assistant turn asks for: an answer, a call of a tool, giving up, or nothing that can be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_mmsr1.protocol.segments import IM_END


@dataclass(slots=True, frozen=True)
class Answer:
    text: str
    name: ClassVar[str] = "answer"


class Call:
    """A call of the tool `name`. `arguments` as the model wrote them: plain JSON values, not yet checked by the tool.

    `others`: further calls of the same turn, in order, where a protocol allows several. Two calls are equal if tool, arguments
    and the others are.
    """

    __slots__ = ("arguments", "name", "others")

    def __init__(self, name: str, arguments: Mapping[str, Any], others: tuple[Call, ...] = ()) -> None:
        self.name, self.arguments, self.others = name, dict(arguments), others

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls of the turn, this one first."""
        return (self, *self.others)

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Call) and (self.name, self.arguments) == (other.name, other.arguments)
        return same and isinstance(other, Call) and self.others == other.others

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(self.arguments, sort_keys=True, default=str), self.others))

    def __repr__(self) -> str:
        return f"Call({self.name!r}, {self.arguments!r}{f', others={self.others!r}' if self.others else ''})"


class ImageSearch(Call):
    """A search for the question's picture."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("image_search", {})


class TextSearch(Call):
    """A search for words."""

    __slots__ = ()

    def __init__(self, query: str) -> None:
        super().__init__("text_search", {"query": query})

    @property
    def query(self) -> str:
        return self.arguments["query"]


@dataclass(slots=True, frozen=True)
class GiveUp:
    name: ClassVar[str] = "give_up"


@dataclass(slots=True, frozen=True)
class Invalid:
    reason: str
    name: ClassVar[str] = "invalid"


Action = Answer | Call | GiveUp | Invalid


def call(name: str, arguments: Mapping[str, Any]) -> Call:
    """A call as the class that it has a class for: `ImageSearch` and `TextSearch`, else `Call`."""
    if name == "image_search" and not arguments:
        return ImageSearch()
    if name == "text_search" and list(arguments) == ["query"] and isinstance(arguments["query"], str):
        return TextSearch(arguments["query"])
    return Call(name, arguments)


def strip_end(text: str) -> str:
    """A sampled turn without what may follow its action: white space and end-of-turn tokens."""
    end = len(text)
    while True:
        stop = end
        while end and text[end - 1].isspace():
            end -= 1
        for token in (IM_END, "<|endoftext|>"):
            if text.endswith(token, 0, end):
                end -= len(token)
        if end == stop:
            return text[:end]


def last_answer(body: str) -> str | None:
    """The inside of the last `<answer>` element, stripped; None without one. The innermost opening tag wins:
    "<answer>a <answer>b</answer>" answers b. Linear time."""
    start = body.rfind("<answer>", 0, max(body.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return body[start : body.find("</answer>", start)].strip()
