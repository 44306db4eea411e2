"""A turn's text as it comes, told apart: what the model thinks, and what it answers. Tags are not shown to anybody.

What stands between `<answer>` and `</answer>` is the answer; all else is reasoning, but for a search, which is the next step's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

REASONING, ANSWER = "reasoning", "answer"
_OPEN, _CLOSE = "<answer>", "</answer>"
_SILENT = ("<reason>", "</reason>")  # left out
_SEARCH = ("<search>", "<text_search>")  # from here on the turn is a tool call
_TAGS = (_OPEN, _CLOSE, *_SILENT, *_SEARCH, "<|im_end|>", "<|endoftext|>")


class Splitter:
    """One turn's. A prefix that others wrote may have begun it: `inside` the answer, or within a search's `query`."""

    def __init__(self, *, inside: bool = False, query: bool = False):
        self._kind = ANSWER if inside else REASONING
        self._held = ""  # may be the beginning of a tag
        self._closed = query

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """(kind, text) of what can be told by now."""
        self._held += text
        while self._held and not self._closed:
            at = self._held.find("<")
            if at != 0:
                plain, self._held = (self._held, "") if at < 0 else (self._held[:at], self._held[at:])
                yield self._kind, plain
                continue
            tag = next((t for t in _TAGS if self._held.startswith(t)), None)
            if tag is not None:
                self._held = self._held[len(tag) :]
                self._pass(tag)
            elif any(t.startswith(self._held) for t in _TAGS):
                return
            else:
                yield self._kind, self._held[0]
                self._held = self._held[1:]

    def end(self) -> Iterator[tuple[str, str]]:
        """What was held back and turned out to be no tag."""
        held, self._held = self._held, ""
        if held and not self._closed:
            yield self._kind, held

    def _pass(self, tag: str) -> None:
        if tag == _OPEN:
            self._kind = ANSWER
        elif tag == _CLOSE:
            self._kind = REASONING
        elif tag in _SEARCH:
            self._closed = True


class Decoder:
    """Token ids to text as they come: bytes of a character that is not whole yet are held back."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._shown = 0

    def feed(self, ids: list[int]) -> str:
        self._ids += ids
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        new, self._shown = text[self._shown :], len(text)
        return new
