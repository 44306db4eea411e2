"""The search-on-demand protocol of MMSearch-R1 (arXiv 2506.20670): one action a turn, as a tag that ends it.

Tags and sentinels are wire format, byte for byte. A tool's call is `<TAG>body</TAG>` (`CallForm.tag`); the searches' are
`<search><img></search>` and `<text_search>QUERY</text_search>`.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.protocol.actions import Action, Answer, Call, GiveUp, Invalid, call, last_answer, strip_end
from megatron_mmsr1.protocol.base import Observed, TurnProtocol
from megatron_mmsr1.protocol.results import IMAGE_RESULTS, SEARCH_FAILED, TEXT_RESULTS
from megatron_mmsr1.protocol.segments import IM_END, IM_START, Segment, question_data, text

IMAGE_SEARCH = "<search><img></search>"
GIVE_UP = "Unable to answer due to lack of relevant information"
NO_ACTION = "the turn ends without a search, an answer or the give-up sentence"


class Settings(Section):
    name: str = "mmsearch"


class MMSearch(TurnProtocol):
    name = "mmsearch"
    Settings = Settings
    silent = ("<reason>", "</reason>", IM_END, "<|endoftext|>")

    def parse(self, text: str) -> Action:
        """A call counts only where it ends the turn (white space or the end-of-turn token may follow); else the last
        `<answer>` counts; else the give-up sentence; else the turn is invalid.

        Queries and answers may hold newlines and are stripped. Where the original is silent about a query with a newline or
        trailing space (its regex has no DOTALL), this one reads it; the original's strictness lives only in the format
        reward.
        """
        body = strip_end(text)
        called = self._call(body)
        if called is not None:
            return called
        answer = last_answer(body)
        if answer is not None:
            return Answer(answer)
        return GiveUp() if GIVE_UP in body else Invalid(NO_ACTION)

    def _call(self, body: str) -> Call | Invalid | None:
        for tool in self.tools.values():
            close = f"</{tool.tag}>"
            if not body.endswith(close):
                continue
            start = body.rfind(f"<{tool.tag}>")
            inside = body[start + len(tool.tag) + 2 : -len(close)]
            if start < 0 or close in inside:
                return None
            try:
                arguments = tool.read_tag(inside)
            except ValueError as e:
                return Invalid(str(e))
            return None if arguments is None else call(tool.name, arguments)
        return None

    def write_call(self, call: Call) -> str:
        tool = self.tools[call.name]
        return f"<{tool.tag}>{tool.write_tag(call.arguments)}</{tool.tag}>"

    def open_call(self, tool: str) -> str:
        return f"<{self.tools[tool].tag}>"

    def write_reason(self, reason: str) -> str:
        return f"<reason>{reason}</reason>"

    def observations(self, observed: Sequence[Observed], question: str) -> list[list[Segment]]:
        """No newline stands between the sampled end-of-turn token and this turn, unlike in Qwen's chat template: the released
        checkpoint was trained without it. A failure is its bare sentence."""
        (o,) = observed  # a turn ends with one call
        if not o.ok:
            return [[text(f"{IM_START}user\n"), *o.body, text(f"{IM_END}\n{IM_START}assistant\n")]]
        return [wrapped(o.heading, o.body, question, o.follow_up)]

    @property
    def call_opens(self) -> tuple[str, ...]:
        return tuple(f"<{t.tag}>" for t in self.tools.values())


def wrapped(heading: str, body: Sequence[Segment], question: str, follow_up: str) -> list[Segment]:
    """A result as the user turn that answers its call, up to and including the assistant's next opening."""
    return [
        text(f"{IM_START}user\n{heading}<information>"),
        *body,
        text("</information>\nOriginal user's question: "),
        question_data(question),
        text(f"\n{follow_up}{IM_END}\n{IM_START}assistant\n"),
    ]


def tool_message(observation: list[Segment], question: str, follow_up: str) -> list[Segment]:
    """A search's result, `wrapped`."""
    return wrapped("Searched results: ", observation, question, follow_up)


def failed_message(kind: str) -> list[Segment]:
    """A failed search ("image", else text): the bare sentinel and sentence, without the wrapping of a result."""
    sentinel = IMAGE_RESULTS if kind == "image" else TEXT_RESULTS
    return [text(f"{IM_START}user\n{sentinel}{SEARCH_FAILED}{IM_END}\n{IM_START}assistant\n")]


PROTOCOL = MMSearch
