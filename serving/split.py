"""A turn's text as it comes, told apart: what the model thinks, and what it answers. Tags are not shown to anybody.

What stands between `<answer>` and `</answer>` is the answer; all else is reasoning, but for a search, which is the next step's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

REASONING, ANSWER = "reasoning", "answer"
_OPEN, _CLOSE = "<answer>", "</answer>"
# Left out. Those that end a search stand alone where a model closed what it had not opened.
_SILENT = ("<reason>", "</reason>", "</search>", "</text_search>", "<|im_end|>", "<|endoftext|>")
_SEARCH = ("<search>", "<text_search>")  # from here on the turn is a tool call
_TAGS = (_OPEN, _CLOSE, *_SILENT, *_SEARCH)


class Splitter:
    """One turn's. A prefix that others wrote may have begun it: `inside` the answer, or within a search's `query`.

    However the text is cut into pieces, the same characters are of the same kind.
    """

    def __init__(self, *, inside: bool = False, query: bool = False):
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
            tag = next((t for t in _TAGS if self._held.startswith(t)), None)
            if tag is not None:
                self._held = self._held[len(tag) :]
                yield from self._pass(tag)
            elif any(t.startswith(self._held) for t in _TAGS):
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
            yield self._kind, held

    def _say(self, text: str) -> Iterator[tuple[str, str]]:
        if self._quoted is not None:
            self._quoted.append(text)
        else:
            yield self._kind, text

    def _pass(self, tag: str) -> Iterator[tuple[str, str]]:
        if self._quoted is not None:
            if tag != _CLOSE:
                self._quoted.append(tag)
                return
            yield ANSWER, "".join(self._quoted)  # an answer about searches, not a search
            self._quoted = None
        if tag == _OPEN:
            self._kind = ANSWER
        elif tag == _CLOSE:
            self._kind = REASONING
        elif tag in _SEARCH and self._kind == ANSWER:
            self._quoted = [tag]
        elif tag in _SEARCH:
            self._closed = True


def words(text: str) -> str:
    """A turn that has no answer's tags, for a reader: what it says beside its reason, or all of it, without tags."""
    _, _, after = text.rpartition("</reason>")
    return _plain(after) or _plain(text)


def _plain(text: str) -> str:
    s = Splitter()
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
