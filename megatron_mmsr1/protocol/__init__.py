"""The search-on-demand protocol of MMSearch-R1 (arXiv 2506.20670): its tags, prompts and observations.

Rollout, SFT, evaluation, gateway and demo all render and parse here, so training and serving cannot drift. Tags and
sentinels are wire format, byte for byte; prompts are data (`Prompts`), because a released checkpoint wants its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import yaml

from megatron_mmsr1.errors import UsageError

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, IMAGE_PAD, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
IMAGE_SEARCH = "<search><img></search>"
GIVE_UP = "Unable to answer due to lack of relevant information"
IMAGE_RESULTS, TEXT_RESULTS = "[Image Search Results]", "[Text Search Results]"
# The misspelling is in the data that the released checkpoint was trained on.
SEARCH_FAILED = " There is an error encountered in performing search. Please reason with your own capaibilities."

# Never sampled: they would announce pixels that do not exist, and the next forward pass would fail on the mismatch.
VISION_TOKENS = (VISION_START, VISION_END, IMAGE_PAD, "<|vision_pad|>", "<|video_pad|>")


# ------------------------------------------------------------------------------------------------------- actions
@dataclass(slots=True, frozen=True)
class Answer:
    text: str
    name = "answer"


@dataclass(slots=True, frozen=True)
class ImageSearch:
    name = "image_search"


@dataclass(slots=True, frozen=True)
class TextSearch:
    query: str
    name = "text_search"


@dataclass(slots=True, frozen=True)
class GiveUp:
    name = "give_up"


@dataclass(slots=True, frozen=True)
class Invalid:
    reason: str
    name = "invalid"


Action = Answer | ImageSearch | TextSearch | GiveUp | Invalid

_OPEN, _CLOSE = "<text_search>", "</text_search>"


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


def parse_action(text: str) -> Answer | ImageSearch | TextSearch | GiveUp | Invalid:
    """The one action of an assistant turn.

    A search counts only where it ends the turn (white space or the end-of-turn token may follow); else the last
    `<answer>` counts; else the give-up sentence; else the turn is invalid. Queries and answers may hold newlines and
    are stripped. Where the original is silent about a query with a newline or trailing space (its regex has no
    DOTALL), this one reads it; the original's strictness lives only in the format reward.
    """
    body = strip_end(text)
    if body.endswith(IMAGE_SEARCH):
        return ImageSearch()
    if body.endswith(_CLOSE):
        start = body.rfind(_OPEN)
        if start >= 0:
            query = body[start + len(_OPEN) : -len(_CLOSE)]
            if _CLOSE not in query:
                return TextSearch(query.strip()) if query.strip() else Invalid("the text search has an empty query")
    # From the back, in linear time. The innermost opening tag wins: "<answer>a <answer>b</answer>" answers b.
    start = body.rfind("<answer>", 0, max(body.rfind("</answer>"), 0))
    if start >= 0:
        start += len("<answer>")
        return Answer(body[start : body.find("</answer>", start)].strip())
    if GIVE_UP in body:
        return GiveUp()
    return Invalid("the turn ends without a search, an answer or the give-up sentence")


# ------------------------------------------------------------------------------------------------------- prompts
@dataclass(slots=True, frozen=True)
class Prompts:
    """The texts around a conversation. `first` holds `<image>` where the pictures go; the question follows it."""

    first: str
    after_image: str
    after_text: str
    system: str = ""

    @classmethod
    def load(cls, name_or_path: str | Path) -> Prompts:
        """A named set that ships with the package (`atlas`, `mmsearch`) or a YAML file with these four keys."""
        path = Path(name_or_path)
        if not path.suffix:
            path = Path(__file__).parent / "prompts" / f"{name_or_path}.yaml"
        if not path.is_file():
            raise UsageError(f"no prompts at {path}: name a set that ships (atlas, mmsearch) or a YAML file")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise UsageError(f"{path}: not valid YAML: {e}") from e
        if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
            raise UsageError(f"{path}: must map first, after_image, after_text and system to texts")
        unknown = set(data) - {"first", "after_image", "after_text", "system"}
        missing = {"first", "after_image", "after_text"} - set(data)
        if unknown or missing:
            raise UsageError(f"{path}: unknown keys {sorted(map(str, unknown))}, missing keys {sorted(missing)}")
        if "<image>" not in data["first"]:
            raise UsageError(f"{path}: `first` must hold <image> where the pictures go")
        return cls(**data)


# -------------------------------------------------------------------------------------------------------- render
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


@dataclass(slots=True, frozen=True)
class ImageHit:
    title: str
    image: bytes | None  # canonical PNG (`data.images.canonicalize`); None: the result has no picture
    url: str = ""


@dataclass(slots=True, frozen=True)
class TextHit:
    link: str
    summary: str
    title: str = ""


def first_message(prompts: Prompts, question: str, n_images: int) -> list[Segment]:
    """The first prompt, up to and including the assistant's opening."""
    out = [text(f"{IM_START}system\n{prompts.system}{IM_END}\n")] if prompts.system else []
    before, after = prompts.first.split("<image>", 1)
    out.append(text(f"{IM_START}user\n{before}"))
    out += [IMAGE] * n_images
    # A question written for another template may carry its own placeholder; the picture stands once.
    out += [text(after), data(question.replace("<image>", "").strip()), text(f"{IM_END}\n{IM_START}assistant\n")]
    return out


def image_observation(hits: Sequence[ImageHit]) -> list[Segment]:
    out = [text(IMAGE_RESULTS)]
    for n, hit in enumerate(hits, 1):
        out.append(text(f"{n}. image: "))
        out += [IMAGE] if hit.image is not None else []
        out += [text("\ntitle: "), data(hit.title), text("\n")]
    return out


def text_observation(hits: Sequence[TextHit]) -> list[Segment]:
    out = [text(TEXT_RESULTS)]
    for n, hit in enumerate(hits, 1):
        out += [text(f"{n}. ("), data(hit.link), text(") "), data(hit.summary), text("\n")]
    return out


def tool_message(observation: list[Segment], question: str, follow_up: str) -> list[Segment]:
    """A tool's result as the user turn that answers it, up to and including the assistant's next opening.

    No newline stands between the sampled end-of-turn token and this turn, unlike in Qwen's chat template: the released
    checkpoint was trained without it.
    """
    return [
        text(f"{IM_START}user\nSearched results: <information>"),
        *observation,
        text("</information>\nOriginal user's question: "),
        data(question.replace("<image>", "").strip()),
        text(f"\n{follow_up}{IM_END}\n{IM_START}assistant\n"),
    ]


def failed_message(kind: str) -> list[Segment]:
    """A failed search: the bare sentinel and sentence, without the wrapping of a result."""
    sentinel = IMAGE_RESULTS if kind == "image" else TEXT_RESULTS
    return [text(f"{IM_START}user\n{sentinel}{SEARCH_FAILED}{IM_END}\n{IM_START}assistant\n")]


# Any token of a chat template, written out in data, becomes inert by a change that a reader still recognises.
_CONTROL = re.compile(r"<\|([^<>|]*)\|>")
# Our own tags, and those that tokenizers of the Qwen family keep as one token.
_TAGS = re.compile(
    r"</?(?:reason|search|img|text_search|answer|information|image|tool_call|tool_response|think)>", re.IGNORECASE
)
# Controls but tab and newline; soft hyphen; joiners and fillers; zero-width and bidi marks; line separators; variation
# selectors; tag characters; surrogates, which no tokenizer can encode. All are invisible, and so a place to hide text.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def clean(untrusted: str) -> str:
    """Data as data: control tokens and our own tags defused, invisible characters dropped.

    One pass suffices: what is removed goes first, and a replacement puts square brackets where a new token would need
    angle ones, so nested tokens do not reassemble.
    """
    s = _INVISIBLE.sub("", untrusted)
    s = _CONTROL.sub(r"[\1]", s)
    return _TAGS.sub(lambda m: f"[{m.group(0)[1:-1]}]", s)


class Tokenizer(Protocol):
    """What this file needs of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str) -> Any: ...


def encode(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[int]:
    """Token ids of a message in the engine's view: one `<|image_pad|>` an image, between its vision tokens."""
    parts: list[str] = []
    for kind, run in groupby(segments, key=lambda s: s.kind):
        if kind == "image":
            parts += [f"{VISION_START}{IMAGE_PAD}{VISION_END}" for _ in run]
        else:
            # Neighbours are joined first: two pieces of data may make a token that neither holds alone.
            joined = "".join(s.text for s in run)
            parts.append(clean(joined) if kind == "data" else joined)
    return tokenizer.encode("".join(parts), add_special_tokens=False)


def banned_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that no rollout may sample and that every log-prob must exclude from its normaliser: the vision tokens."""
    ids = (tokenizer.convert_tokens_to_ids(t) for t in VISION_TOKENS)
    return sorted({i for i in ids if isinstance(i, int) and i >= 0})
