"""The search-on-demand protocol of MMSearch-R1 (arXiv 2506.20670): its tags, prompts and observations.

Rollout, SFT, evaluation, gateway and demo all render and parse here, so training and serving cannot drift. Tags and sentinels
are wire format, byte for byte; prompts are data (`Prompts`), because a released checkpoint wants its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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


# ---------------------------------------------------------------------------------------------------------------- actions
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
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def parse_action(text: str) -> Answer | ImageSearch | TextSearch | GiveUp | Invalid:
    """The one action of an assistant turn.

    A search counts only where it ends the turn (white space or the end-of-turn token may follow); else the last `<answer>`
    counts; else the give-up sentence; else the turn is invalid. Queries and answers may hold newlines and are stripped. Where
    the original is silent about a query with a newline or trailing space (its regex has no DOTALL), this one reads it; the
    original's strictness lives only in the format reward.
    """
    body = text.rstrip()
    while body.endswith((IM_END, "<|endoftext|>")):
        body = body.removesuffix(IM_END).removesuffix("<|endoftext|>").rstrip()
    if body.endswith(IMAGE_SEARCH):
        return ImageSearch()
    if body.endswith(_CLOSE):
        start = body.rfind(_OPEN)
        if start >= 0:
            query = body[start + len(_OPEN) : -len(_CLOSE)]
            if _CLOSE not in query:
                return TextSearch(query.strip()) if query.strip() else Invalid("the text search has an empty query")
    answers = _ANSWER.findall(body)
    if answers:
        # The innermost opening tag wins: "<answer>a <answer>b</answer>" answers b.
        return Answer(answers[-1].rsplit("<answer>", 1)[-1].strip())
    if GIVE_UP in body:
        return GiveUp()
    return Invalid("the turn ends without a search, an answer or the give-up sentence")


# ---------------------------------------------------------------------------------------------------------------- prompts
@dataclass(slots=True, frozen=True)
class Prompts:
    """The texts around a conversation. `first` holds `<image>` where the pictures go and is followed by the question."""

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
        data = yaml.safe_load(path.read_text()) or {}
        unknown = set(data) - {"first", "after_image", "after_text", "system"}
        missing = {"first", "after_image", "after_text"} - set(data)
        if unknown or missing:
            raise UsageError(f"{path}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
        if "<image>" not in data["first"]:
            raise UsageError(f"{path}: `first` must hold <image> where the pictures go")
        return cls(**data)


# ----------------------------------------------------------------------------------------------------------------- render
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


# Any token of the chat template, written out in data, becomes inert by a zero-cost change that a reader still recognises.
_CONTROL = re.compile(r"<\|([a-z_]+)\|>")
_OWN_TAGS = re.compile(r"</?(?:reason|search|img|text_search|answer|information|image)>", re.IGNORECASE)
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad\U000e0000-\U000e007f\x00-\x08\x0b-\x1f\x7f]")


def clean(untrusted: str) -> str:
    """Data as data: control tokens and our own tags defused, zero-width, bidi and control characters dropped."""
    s = _INVISIBLE.sub("", untrusted)
    s = _CONTROL.sub(r"[\1]", s)
    return _OWN_TAGS.sub(lambda m: f"[{m.group(0)[1:-1]}]", s)


class Tokenizer(Protocol):
    """What this file needs of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str) -> Any: ...


def encode(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[int]:
    """Token ids of a message in the engine's view: one `<|image_pad|>` an image, between its vision tokens."""
    parts = []
    for s in segments:
        parts.append(f"{VISION_START}{IMAGE_PAD}{VISION_END}" if s.kind == "image" else clean(s.text) if s.kind == "data" else s.text)
    return tokenizer.encode("".join(parts), add_special_tokens=False)


def banned_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that no rollout may sample and that every log-prob must exclude from its normaliser: the vision tokens."""
    ids = (tokenizer.convert_tokens_to_ids(t) for t in VISION_TOKENS)
    return sorted({i for i in ids if isinstance(i, int) and i >= 0})
