"""What a scripted policy sees and says.

A policy is a function of what stands in the conversation, so the rollout's own agent loop runs it, against the real search
server, in place of an engine. None knows an answer that a perfect reader of the same conversation would not: search-free
questions it can answer at once, any other only once the gold stands in a result.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_mmsr1 import protocol
from megatron_mmsr1.atlas import turns
from megatron_mmsr1.atlas.questions import TOOLS, Question
from megatron_mmsr1.atlas.turns import ANSWER, CROP, IMAGE, TEXT
from megatron_mmsr1.data.decode import decode
from megatron_mmsr1.data.images import canonicalize
from megatron_mmsr1.protocol import IM_END, IM_START

if TYPE_CHECKING:
    from megatron_mmsr1.data.dataset import Prompt

# One call each: a second one would find the same.
SEARCHES = (IMAGE, TEXT)
MOST_TOOLS = 2  # three rounds, the last of which answers


@dataclass(frozen=True, slots=True)
class State:
    """What a policy may look at: the question, the tools used so far in order ("", "i", "it", "c", ...), what they found."""

    question: Question
    used: str
    found: str
    rng: random.Random

    @property
    def fact_known(self) -> bool:
        """A neighbour's name may come up in an image search: only the last tool that the question needs tells a fact."""
        needed = TOOLS[self.question.kind]
        if self.question.kind == "crop":
            return CROP in self.used and "Cropped picture: " in self.found
        return not needed or (needed[-1] in self.used and _stands_in(self.question.gold, self.found))

    @property
    def name_known(self) -> bool:
        return self.question.kind in ("known", "text") or _stands_in(self.question.name, self.found)

    def unused(self, tools: Sequence[str]) -> list[str]:
        return [tool for tool in tools if tool not in self.used]


def oracle(s: State) -> str:
    """The tools that the question needs, in order, then what they found."""
    left = TOOLS[s.question.kind].removeprefix(s.used)
    return left[0] if left and not s.fact_known else ANSWER


def never(s: State) -> str:
    return ANSWER


def always(s: State) -> str:
    """Every search, whatever the question."""
    return next(iter(s.unused(SEARCHES)), ANSWER)


def at_random(s: State) -> str:
    return ANSWER if len(s.used) == MOST_TOOLS else s.rng.choice([ANSWER, *s.unused((*SEARCHES, CROP))])


Policy = Callable[[State], str]


def speak(action: str, s: State) -> str:
    """The assistant's turn for an action."""
    if action == IMAGE:
        return turns.image_search()
    if action == TEXT:
        return turns.text_search(turns.query(s.question, name_known=s.name_known))
    if action == CROP:
        # Where the emblem fills the picture, every corner is as good as another.
        return turns.crop(max(s.question.corner, 0))
    return turns.answer(s.question.gold if s.fact_known else turns.UNKNOWN)


class Script:
    """A policy over whole conversations, for any prompts of an Atlas data set."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], *, min_pixels: int, max_pixels: int) -> None:
        """The pixel limits are the model's: pictures are told apart as it gets them."""
        self._policy = policy
        self._by_image: dict[str, list[Prompt]] = {}
        for p in prompts:
            seen = canonicalize(p.images[0], min_pixels=min_pixels, max_pixels=max_pixels)
            self._by_image.setdefault(_pixels(seen.png), []).append(p)

    def turn(self, conversation: str, images: Sequence[bytes], seed: int) -> str:
        """The next assistant turn, without its end token. `conversation` is the text so far, opened for the assistant.

        Raises LookupError if the first picture and the question are not those of a prompt.
        """
        first, *rest = conversation.split(f"{IM_START}assistant\n")
        candidates = [p for p in self._by_image.get(_pixels(images[0]), []) if protocol.clean(p.question) in first]
        if not candidates:
            raise LookupError(f"no prompt of this policy shows that picture and asks: {first[-200:]!r}")
        prompt = max(candidates, key=lambda p: len(p.question))
        said = [r.split(IM_END)[0] for r in rest]
        actions = [protocol.parse_action(s) for s in said if s]
        used = "".join({"image_search": IMAGE, "text_search": TEXT, "crop": CROP}.get(a.name, "") for a in actions)
        found = "\n".join(r.split("</information>")[0].split(IM_END, 1)[-1] for r in rest)
        rng = random.Random(f"{prompt.prompt_id}/{seed}/{used}")
        s = State(question_of(prompt), used, found, rng)
        return speak(self._policy(s), s)


def question_of(prompt: Prompt) -> Question:
    """The Atlas question behind a prompt. Raises KeyError if its `extra_info` is not Atlas's."""
    fields: dict[str, Any] = {name: prompt.extra[name] for name in Question.__dataclass_fields__}
    return Question(**fields)


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _pixels(image: bytes) -> str:
    """A picture by its pixels: engines get it re-encoded."""
    return hashlib.sha256(decode(image).tobytes()).hexdigest()
