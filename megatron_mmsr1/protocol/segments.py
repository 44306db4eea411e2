"""A message as segments: our text, other people's data, pictures. Data cannot speak as a turn, a tag or a tool.

The trainer, the engine and every protocol share the vision tokens named here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Protocol

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, IMAGE_PAD, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"

# Never sampled: they would announce pixels that do not exist, and the next forward pass would fail on the mismatch.
VISION_TOKENS = (VISION_START, VISION_END, IMAGE_PAD, "<|vision_pad|>", "<|video_pad|>")


@dataclass(slots=True, frozen=True)
class Segment:
    """A stretch of a message: trusted `text` (ours, may hold control tokens), untrusted `data` (a question, a title, a
    page: its control tokens are defused before encoding), or an `image` by its place in the list that goes with it."""

    kind: str  # "text" | "data" | "image"
    text: str = ""


def text(s: str) -> Segment:
    return Segment("text", s)


def data(s: str) -> Segment:
    return Segment("data", s)


IMAGE = Segment("image")


def question_data(question: str) -> Segment:
    """A question as data. One written for another template may carry its own placeholder; the picture stands once."""
    return data(question.replace("<image>", "").strip())


# Any token of a chat template, written out in data, becomes inert by a change that a reader still recognises.
_CONTROL = re.compile(r"<\|([^<>|]*)\|>")
# Tags of the protocols and the tools that ship, and those that tokenizers of the Qwen family keep as one token.
OWN_TAGS = (
    *("reason", "search", "img", "text_search", "crop", "answer", "information", "image"),
    *("tool_call", "tool_response", "tools", "think"),
)
# Controls but tab and newline; soft hyphen; joiners and fillers; zero-width and bidi marks; line separators; variation
# selectors; tag characters; surrogates, which no tokenizer can encode. All are invisible, and so a place to hide text.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def clean(untrusted: str, tags: Iterable[str] = ()) -> str:
    """Data as data: control tokens and tags (`OWN_TAGS` and `tags`, which are names) defused, invisible characters dropped.

    One pass suffices: what is removed goes first, and a replacement puts square brackets where a new token would need
    angle ones, so nested tokens do not reassemble.
    """
    s = _INVISIBLE.sub("", untrusted)
    s = _CONTROL.sub(r"[\1]", s)
    return _tags(tuple(tags)).sub(lambda m: f"[{m.group(0)[1:-1]}]", s)


@lru_cache(maxsize=64)
def _tags(more: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(t) for t in (*OWN_TAGS, *more))
    return re.compile(rf"</?(?:{names})>", re.IGNORECASE)


class Tokenizer(Protocol):
    """What this file needs of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str) -> Any: ...


def encode(
    tokenizer: Tokenizer,
    segments: Sequence[Segment],
    tags: Iterable[str] = (),
    *,
    picture: str = f"{VISION_START}{IMAGE_PAD}{VISION_END}",
) -> list[int]:
    """Token ids of a message in the engine's view: one pad an image, between its marks, as the model family writes `picture`
    (`models.SpecialTokens.picture`). `tags`: as `clean` has it."""
    parts: list[str] = []
    for kind, run in groupby(segments, key=lambda s: s.kind):
        if kind == "image":
            parts += [picture for _ in run]
        else:
            # Neighbours are joined first: two pieces of data may make a token that neither holds alone.
            joined = "".join(s.text for s in run)
            parts.append(clean(joined, tags) if kind == "data" else joined)
    return tokenizer.encode("".join(parts), add_special_tokens=False)


def banned_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that no rollout may sample and that every log-prob must exclude from its normaliser: the vision tokens."""
    ids = (tokenizer.convert_tokens_to_ids(t) for t in VISION_TOKENS)
    return sorted({i for i in ids if isinstance(i, int) and i >= 0})
