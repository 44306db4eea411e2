"""Every reward that ships, and the one of docs/extend/reward.md, holds to the contract; broken ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from contracts.reward import check_reward
from doc_examples import write_examples

from megatron_mmsr1 import reward
from megatron_mmsr1.config import parse
from megatron_mmsr1.errors import UsageError

OPTIONS = {"weighted": {"terms": [{"weight": 2.0, "reward": "mmsearch"}, {"weight": -1.0, "reward": {"name": "mmsearch"}}]}}

REWARD = """
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.reward import Reward

class Settings(Section):
    name: str = "broken"

class Broken(Reward):
    Settings = Settings
    def parts(self, trajectory):
        {body}
"""


@pytest.mark.parametrize("name", reward.REGISTRY.names())
def test_what_ships_holds_to_the_contract(name: str) -> None:
    check_reward(reward.get(name, **OPTIONS.get(name, {})))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'score': 1.0}", 'the key "reward"'),
        ("return {'reward': float('nan')}", "finite"),
        ("return {'reward': 0.0, **{t.text: 1.0 for t in trajectory.turns}}", "the same keys"),
        ("trajectory.turns.clear(); return {'reward': 0.0}", "must not change the trajectory"),
    ],
)
def test_a_broken_reward_breaks_a_rule(tmp_path: Path, body: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(REWARD.format(body=body))
    with pytest.raises(AssertionError, match=said):
        check_reward(reward.get(f"{file}:Broken"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (REWARD.format(body="pass").replace("def parts", "def part"), "it has no method parts"),
        ("class Broken: pass", "it must be a subclass of megatron_mmsr1.reward.Reward"),
        (REWARD.format(body="pass").replace("Settings = Settings", "Settings = 3"), "its Settings must be a subclass"),
    ],
)
def test_a_broken_class_is_refused_by_file_and_rule_when_the_config_is_read(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UsageError) as e:
        parse({"model": {"path": "m"}, "reward": f"{file}:Broken"})
    assert said in str(e.value) and str(file) in str(e.value)


def test_a_weighted_sum() -> None:
    right = ["<reason>r</reason><search><img></search>", "<reason>r</reason><answer>Lisbon</answer>"]
    terms = [{"weight": 1.0, "reward": "mmsearch"}, {"weight": 0.5, "reward": {"name": "mmsearch", "search_penalty": 0.5}}]
    values = reward.get("weighted", terms=terms).score(right, ["Lisbon"])
    # 0.9 * 0.9 + 0.1 = 0.91, and 0.9 * 0.5 + 0.1 = 0.55.
    assert values["reward"] == pytest.approx(0.91 + 0.5 * 0.55)
    assert (values["term/1/reward"], values["term/2/reward"]) == (pytest.approx(0.91), pytest.approx(0.55))
    assert (values["acc"], values["format"], values["searches"]) == (1.0, 1.0, 1.0)
    with pytest.raises(UsageError, match=r"unknown key reward\.terms"):
        parse({"model": {"path": "m"}, "reward": {"name": "weighted", "terms": [{"wieght": 1.0, "reward": "mmsearch"}]}})


def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_examples("reward.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    alone = parse({"model": {"path": "m"}} | yaml.safe_load(files["alone.yaml"].read_text()))
    assert reward.from_settings(alone.reward).score(["two words"], []) == {"reward": 1.0, "words": 2.0}
    both = parse({"model": {"path": "m"}} | yaml.safe_load(files["sum.yaml"].read_text()))
    values = reward.from_settings(both.reward).score(["<reason>r</reason><answer>Lisbon</answer>"], ["Lisbon"])
    assert values["reward"] == pytest.approx(1.5)
    exec(files["check_brief.py"].read_text() + "\ntest_contract()\n", {})
