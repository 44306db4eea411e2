"""What every reward must hold to; raises AssertionError with the broken rule."""

from __future__ import annotations

import copy
import math
import pickle

from megatron_mmsr1.reward.base import Reward, resolved
from megatron_mmsr1.trajectory import Status, Trajectory

TURNS = (
    [],
    [""],
    ["<reason>r</reason><answer>Lisbon</answer>"],
    ["<reason>r</reason><search><img></search>", "<reason>r</reason><answer>Lisbon</answer><|im_end|>"],
    ["<reason>r</reason><text_search>q</text_search>", "Unable to answer due to lack of relevant information"],
    ["<answer>" * 1000, "é\x00\n" * 1000],
)


def check_reward(reward: Reward) -> None:
    assert isinstance(reward, Reward), "it must be a megatron_mmsr1.reward.Reward"
    assert "name" in type(reward).Settings.model_fields, "its Settings has no name"
    keys: set[str] | None = None
    for turns in TURNS:
        t = Trajectory("p", "g", 0, "Which city?", ["Lisbon"], status=Status.ANSWERED)
        t.append("prompt", [1, 2], "Which city?")
        for text in turns:
            t.append("assistant", [3], text, logprobs=[-0.5])
            t.append("tool", [4], "found")
        before = copy.deepcopy(t)
        values = resolved(reward.parts(t))
        assert "reward" in values, 'parts must hold the key "reward"'
        assert all(isinstance(v, int | float) and math.isfinite(v) for v in values.values()), "parts must be finite numbers"
        assert keys is None or keys == set(values), "parts must have the same keys for every trajectory"
        keys = set(values)
        assert t.to_dict() == before.to_dict(), "parts must not change the trajectory"
        pickle.loads(pickle.dumps(values))  # they travel between processes
    assert set(reward.score(["x"], ["Lisbon"])) == keys, "score must give what parts gives"
