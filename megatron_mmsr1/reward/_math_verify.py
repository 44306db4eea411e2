"""Whether math-verify (huggingface/Math-Verify) takes two LaTeX texts for the same: what `_expressions` has no grammar for."""

# math-verify says of few of its results what they are.
# pyright: standard

from __future__ import annotations

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify

# It warns at each call without a time limit of its own. That one is an alarm signal, which only a main thread has and which
# cannot end a computation inside C; the limit here is that of the process.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_LATEX = [LatexExtractionConfig()]
_COMMAND = re.compile(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+")
_NO_MATHS = re.compile(r"[A-Za-z]{3}|(?<![_\d])\d+\s+\d")
_EQUALS = re.compile(r"(?<![<>!])=")


def agree(said: str, gold: str) -> bool:
    """Its verdict on `said`. False without asking it for what it would read generously: words as products of letters, numbers
    beside each other as a sum, and "6 = 5" as 5 where the gold is no equation."""
    said, gold = said.replace("$", "").strip(), gold.replace("$", "").strip()
    if not said or _NO_MATHS.search(_COMMAND.sub(" ", said)) or (_EQUALS.search(said) and not _EQUALS.search(gold)):
        return False
    golds, answers = (parse(f"${text}$", _LATEX, parsing_timeout=0) for text in (gold, said))
    return bool(golds and answers and verify(golds, answers, timeout_seconds=0))
