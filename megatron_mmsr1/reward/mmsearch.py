"""The rule-based reward of MMSearch-R1 (arXiv 2506.20670, section 3.3): right, cheap, well formed.

Every function reads text with `str.find` and `str.count` only, so a turn of any length costs linear time.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Literal, TypedDict

from pydantic import Field

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward.base import Reward, bodies
from megatron_mmsr1.trajectory import Trajectory

_IMAGE = "<search><img></search>"
_TEXT = ("<text_search>", "</text_search>")
_CROP = ("<crop>", "</crop>")
_ANSWER = ("<answer>", "</answer>")
_REASON = ("<reason>", "</reason>")
_DROP = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")

# The well-formed trajectories, by the action of each turn. Crops, which the original does not know, may stand before any.
SHAPES = (("answer",), ("image", "answer"), ("text", "answer"), ("image", "text", "answer"))


class Price(TypedDict):
    """What `priced` takes of calls and of the form."""

    search_penalty: float
    format_penalty: float
    count_penalty: bool
    crop_penalty: float


class Prices(Section):
    """What is paid for calls, and for the form; also by a reward in which somebody else says what is right."""

    name: str
    search_penalty: float = Field(default=0.1, ge=0, le=1, description="what a right answer loses for having searched")
    format_penalty: float = Field(default=0.1, ge=0, le=1, description="the share of the reward that is for the form")
    count_penalty: bool = Field(default=False, description="the penalties are paid once a call")
    crop_penalty: float = Field(default=0.0, ge=0, le=1, description="what a right answer loses for having cropped")
    penalty_warmup: int = Field(
        default=0, ge=0, description="steps over which search_penalty and crop_penalty grow from 0; evaluations pay them whole"
    )

    def prices(self, step: int | None) -> Price:
        """In a step of the run; None outside of training."""
        share = warmed(step, self.penalty_warmup)
        return {
            "search_penalty": self.search_penalty * share,
            "format_penalty": self.format_penalty,
            "count_penalty": self.count_penalty,
            "crop_penalty": self.crop_penalty * share,
        }


class Settings(Prices):
    name: str = "mmsearch"
    reward_mode: Literal["EM", "SubEM"] = Field(default="EM", description="the answer equals a golden one, or contains one")


class MMSearch(Reward):
    """`parts` of a finished trajectory, under the run's settings."""

    Settings = Settings
    in_process = True

    def parts(self, trajectory: Trajectory) -> dict[str, float]:
        s, turns = self.settings, bodies(trajectory)
        return parts(turns, trajectory.golden_answers, reward_mode=s.reward_mode, **s.prices(trajectory.step))


REWARD = MMSearch


def score(
    turns: Sequence[str],
    golden_answers: Sequence[str] | str,
    *,
    search_penalty: float = 0.1,
    format_penalty: float = 0.1,
    reward_mode: str = "EM",
    count_penalty: bool = False,
    crop_penalty: float = 0.0,
) -> float:
    """The reward of a trajectory from the texts of its assistant turns, in [0, 1] for penalties in [0, 1].

    (1 - format_penalty) * acc + format_penalty * format, where acc is 1 for a right answer, times (1 - search_penalty)
    if it took a search (with `count_penalty`, once a search). `reward_mode` "EM": the normalised answer equals any
    gold; "SubEM": it contains any. A string is the only gold. The same numbers as the original's, for any number of turns.
    `crop_penalty` is what crops cost, in the same way as searches; the original knows none.
    """
    return parts(
        turns,
        [golden_answers] if isinstance(golden_answers, str) else golden_answers,
        search_penalty=search_penalty,
        format_penalty=format_penalty,
        reward_mode=reward_mode,
        count_penalty=count_penalty,
        crop_penalty=crop_penalty,
    )["reward"]


def parts(
    turns: Sequence[str],
    golden_answers: Sequence[str],
    *,
    search_penalty: float,
    format_penalty: float,
    reward_mode: str,
    count_penalty: bool,
    crop_penalty: float = 0.0,
) -> dict[str, float]:
    """`score` and what it is made of: reward, acc (0 or 1, before the penalty), format (0 or 1), searches and,
    where there are any, crops (counts)."""
    acc = float(bool(turns) and is_right(answer_of(turns[-1]), golden_answers, reward_mode))
    return priced(
        turns,
        acc,
        search_penalty=search_penalty,
        format_penalty=format_penalty,
        count_penalty=count_penalty,
        crop_penalty=crop_penalty,
    )


def priced(
    turns: Sequence[str],
    acc: float,
    *,
    search_penalty: float,
    format_penalty: float,
    count_penalty: bool,
    crop_penalty: float = 0.0,
) -> dict[str, float]:
    """`parts` for an answer that somebody found right (acc 1) or wrong (acc 0)."""
    n = searches(turns)
    paid = acc * (1 - search_penalty) ** (n if count_penalty else min(n, 1))
    cropped = crops(turns)
    paid *= (1 - crop_penalty) ** (cropped if count_penalty else min(cropped, 1))
    well_formed = float(is_well_formed(turns))
    reward = (1 - format_penalty) * paid + format_penalty * well_formed
    out = {"reward": reward, "acc": acc, "format": well_formed, "searches": float(n)}
    return out | ({"crops": float(cropped)} if cropped else {})


def warmed(step: int | None, warmup: int) -> float:
    """The share of a call's price that is paid in a step of the run: step / warmup, at most 1; 1 outside of training."""
    return 1.0 if step is None or step >= warmup else step / warmup


def answer_of(turn: str) -> str | None:
    """The inside of the last complete `<answer>` element, or None."""
    start = turn.rfind(_ANSWER[0], 0, max(turn.rfind(_ANSWER[1]), 0))
    if start < 0:
        return None
    start += len(_ANSWER[0])
    return turn[start : turn.find(_ANSWER[1], start)]


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, the words a, an and the, and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROP)).split())


def is_right(answer: str | None, golden_answers: Sequence[str], reward_mode: str) -> bool:
    """Whether the answer equals (EM) or contains (SubEM) any gold. Raises ValueError for another mode."""
    if reward_mode not in ("EM", "SubEM"):
        raise ValueError(f"reward_mode {reward_mode!r}: EM or SubEM")
    if answer is None:
        return False
    said = normalize(answer)
    for gold in golden_answers:
        wanted = normalize(gold)
        if not wanted:
            # The gold is an article or punctuation ("A" of a multiple choice): an empty answer must not match it.
            if gold.strip() and answer.strip().lower() == gold.strip().lower():
                return True
        elif wanted == said or (reward_mode == "SubEM" and wanted in said):
            return True
    return False


def searches(turns: Sequence[str]) -> int:
    """Turns that call for a search, wherever in the turn.

    The last turn of several is the answer and does not count, as in the original; a lone turn does.
    """
    return sum(_IMAGE in t or all(tag in t for tag in _TEXT) for t in (turns[:-1] or turns))


def crops(turns: Sequence[str]) -> int:
    """Turns that call for a crop, counted as searches are."""
    return sum(all(tag in t for tag in _CROP) for t in (turns[:-1] or turns))


def is_well_formed(turns: Sequence[str]) -> bool:
    """Whether the turns but for crops are one of `SHAPES`, each turn its reasoning first and its one action last."""
    return tuple(shape for t in turns if (shape := _shape(t.strip())) != "crop") in SHAPES


def _shape(turn: str) -> str:
    """The action of a well-formed turn: image, text, crop or answer; "" if it is malformed."""
    if not turn.startswith(_REASON[0]) or not _once(turn, *_REASON):
        return ""
    rest = turn[turn.find(_REASON[1]) + len(_REASON[1]) :]
    # A tag of another action makes the turn malformed, closed or not.
    tagged = {"text": _TEXT, "crop": _CROP, "answer": _ANSWER}
    found = {"image": _IMAGE in turn} | {name: any(t in turn for t in tags) for name, tags in tagged.items()}
    if sum(found.values()) != 1:
        return ""
    if found["image"]:
        return "image" if rest.endswith(_IMAGE) and turn.count(_IMAGE) == 1 else ""
    name, tags = next((name, tags) for name, tags in tagged.items() if found[name])
    return name if rest.endswith(tags[1]) and tags[0] in rest and _once(turn, *tags) else ""


def _once(text: str, opening: str, closing: str) -> bool:
    return text.count(opening) == 1 and text.count(closing) == 1 and text.find(opening) < text.find(closing)
