"""A turn's text as it comes, told apart: what the model thinks, and what it answers. Tags are not shown to anybody.

What stands between `<answer>` and `</answer>` is the answer; all else is reasoning, but for a call, which is the next step's.
Which tags there are is the protocol's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from megatron_mmsr1 import protocol
from megatron_mmsr1.protocol import TurnProtocol

REASONING, ANSWER = "reasoning", "answer"


@dataclass(frozen=True, slots=True)
class Markup:
    """What a protocol's tags mean for a reader. `silent` are left out; those that end a call stand alone where a model closed
    what it had not opened. From one of `calls` on the turn is a tool call. `plain`: what stands outside of all tags and
    before no call is the answer."""

    open: str
    close: str
    silent: tuple[str, ...]
    calls: tuple[str, ...]
    plain: bool = False

    @classmethod
    def of(cls, p: TurnProtocol) -> Markup:
        closing = tuple(f"</{c[1:]}" for c in p.call_opens)
        return cls(p.answer_open, p.answer_close, tuple(dict.fromkeys((*p.silent, *closing))), p.call_opens, p.plain_answers)

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.open, self.close, *self.silent, *self.calls)


@cache
def default() -> Markup:
    """That of MMSearch-R1's tags and the tools that ship."""
    return Markup.of(protocol.get("mmsearch"))


class Splitter:
    """One turn's. A prefix that others wrote may have begun it: `inside` the answer, or within a search's `query`.

    However the text is cut into pieces, the same characters are of the same kind.
    """

    def __init__(self, markup: Markup | None = None, *, inside: bool = False, query: bool = False):
        self._markup = markup or default()
        self._tags = self._markup.tags
        self._plain: list[str] = []  # without tags so far: the answer, unless a call or an answer's tag follows
        self._thinking = False
        self._kind = ANSWER if inside else REASONING
        self._held = ""  # may be the beginning of a tag
        self._closed = query
        self._quoted: list[str] | None = None  # from a search's tag on, within an answer: a call, or the answer's own words

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """(kind, text) of what can be told by now."""
        self._held += text
        while self._held and not self._closed:
            at = self._held.find("<")
            if at != 0:
                plain, self._held = (self._held, "") if at < 0 else (self._held[:at], self._held[at:])
                yield from self._say(plain)
                continue
            tag = next((t for t in self._tags if self._held.startswith(t)), None)
            if tag is not None:
                self._held = self._held[len(tag) :]
                yield from self._pass(tag)
            elif any(t.startswith(self._held) for t in self._tags):
                return
            else:
                plain, self._held = self._held[0], self._held[1:]
                yield from self._say(plain)
        if self._closed:
            self._held = ""

    def end(self) -> Iterator[tuple[str, str]]:
        """What was held back and turned out to be no tag."""
        held, self._held = self._held, ""
        if held and not self._closed and self._quoted is None:
            yield from self._say(held)
        if not self._closed:
            yield from self._was(ANSWER)

    def _say(self, text: str) -> Iterator[tuple[str, str]]:
        if self._quoted is not None:
            self._quoted.append(text)
        elif self._markup.plain and self._kind == REASONING and not self._thinking:
            self._plain.append(text)
        else:
            yield self._kind, text

    def _was(self, kind: str) -> Iterator[tuple[str, str]]:
        """What was held back for want of a tag turns out to be of this kind."""
        said, self._plain = "".join(self._plain), []
        if said.strip():
            yield kind, said

    def _pass(self, tag: str) -> Iterator[tuple[str, str]]:
        if self._quoted is not None:
            if tag != self._markup.close:
                self._quoted.append(tag)
                return
            yield ANSWER, "".join(self._quoted)  # an answer about searches, not a search
            self._quoted = None
        if tag in ("<think>", "</think>"):
            self._thinking = tag == "<think>"
        if tag == self._markup.open:
            yield from self._was(REASONING)
            self._kind = ANSWER
        elif tag == self._markup.close:
            self._kind = REASONING
            self._thinking = True  # what follows an answer in tags is not the answer
        elif tag in self._markup.calls and self._kind == ANSWER:
            self._quoted = [tag]
        elif tag in self._markup.calls:
            yield from self._was(REASONING)
            self._closed = True


def words(text: str, markup: Markup | None = None) -> str:
    """A turn that has no answer's tags, for a reader: what it says beside its reason, or all of it, without tags."""
    _, _, after = text.rpartition("</reason>")
    return _plain(after, markup) or _plain(text, markup)


def _plain(text: str, markup: Markup | None) -> str:
    s = Splitter(markup)
    return _joined((*s.feed(text), *s.end()))


def _joined(parts: Iterable[tuple[str, str]]) -> str:
    return "".join(text for _, text in parts).strip()


class Decoder:
    """Token ids to text as they come: bytes of a character that is not whole yet are held back.

    Only the last few tokens are decoded anew each time. `decode` maps ids to the text of their bytes.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []  # of `_before`, which was given out, and of what was not
        self._before = 0

    def feed(self, ids: list[int]) -> str:
        self._ids += ids
        whole = self._decode(self._ids)
        if whole.endswith("\ufffd"):
            return ""
        return self._give(whole)

    def end(self) -> str:
        """What was held back: bytes that never became a character."""
        return self._give(self._decode(self._ids))

    def _give(self, whole: str) -> str:
        shown = self._decode(self._ids[: self._before])
        # What was given out last stays as context: a decoder may treat the first token of a text unlike the others.
        self._ids = self._ids[self._before :]
        self._before = len(self._ids)
        return whole[len(shown) :]
