"""What models and pages wrote, as text that cannot rearrange a page around it."""

from __future__ import annotations

import re

from megatron_mmsr1.protocol import Answer, parse_action
from megatron_mmsr1.trajectory import Trajectory

# Characters that would change how the rest of a line reads, or that do not show at all.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def visible(text: str) -> str:
    """Control, zero-width and bidirectional characters written out."""
    return UNSEEN.sub(lambda m: f"\\u{ord(m.group()):04x}", text)


def in_short(t: Trajectory) -> str:
    """What was done, answered and earned, in a line."""
    texts, actions = t.assistant_texts, [u.action.replace("_", " ") for u in t.turns if u.role == "assistant"]
    if texts and isinstance(action := parse_action(texts[-1]), Answer):
        actions[-1] = f'answer "{visible(action.text)}"'
    reward = "not scored" if t.reward is None else f"reward {t.reward:.3g}"
    return f"{' → '.join(actions) or 'no turn'}; {t.status.value.replace('_', ' ')}; {reward}"
