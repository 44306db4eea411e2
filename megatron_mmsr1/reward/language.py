"""A penalty for letters of other scripts than the wanted ones, as in thoughts that change their language (DeepSeek-R1, arXiv
2501.12948, section 2.3.2, rewards the share of words in the wanted language). For a weighted sum.

A script tells Chinese from English, but not French from English.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter

from pydantic import Field, field_validator

from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward.base import Reward, bodies
from megatron_mmsr1.trajectory import Trajectory

_TAG = re.compile(r"</?[a-z_]{1,20}>")


class Settings(Section):
    name: str = "language"
    scripts: list[str] = Field(
        default=["latin", "greek"],
        min_length=1,
        description="the wanted ones, by the first word of Unicode's names of their letters: latin, greek, cyrillic, cjk, "
        "hiragana, katakana, hangul, arabic, ...",
    )

    @field_validator("scripts")
    @classmethod
    def _exist(cls, scripts: list[str]) -> list[str]:
        unknown = {s.lower() for s in scripts} - _known()
        if unknown:
            raise ValueError(f"no letter is of the script {', '.join(sorted(unknown))}")
        return scripts


class Language(Reward):
    """reward = -(letters of other scripts / letters) over all the model's turns, in [-1, 0]; tags do not count."""

    Settings = Settings
    in_process = True

    def parts(self, trajectory: Trajectory) -> dict[str, float]:
        share = foreign(bodies(trajectory), frozenset(s.lower() for s in self.settings.scripts))
        return {"reward": -share, "foreign": share}


REWARD = Language


def foreign(turns: list[str], scripts: frozenset[str]) -> float:
    """Share of letters that are of none of the scripts, in [0, 1]; 0 for texts without letters."""
    letters = {c: n for c, n in Counter("".join(_TAG.sub("", turn) for turn in turns)).items() if c.isalpha()}
    return sum(n for c, n in letters.items() if _script(c) not in scripts) / sum(letters.values()) if letters else 0.0


@functools.cache
def _known() -> frozenset[str]:
    """The scripts of all letters of Unicode's first two planes."""
    return frozenset(_script.__wrapped__(c) for c in map(chr, range(0x20000)) if c.isalpha())


@functools.lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    """latin for "a", for its accents and for the "ℝ" of formulas."""
    plain = unicodedata.normalize("NFKD", letter)[0]
    return unicodedata.name(plain, "").partition(" ")[0].lower()
