"""Every reward that ships, and the one of docs/extend/reward.md, holds to the contract; broken ones do not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from contracts.reward import check_reward
from doc_examples import write_examples
from vendors.openai import said
from vendors.server import Asked, Reply, Vendor

from megatron_mmsr1 import reward
from megatron_mmsr1.config import parse
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.reward.base import resolved
from megatron_mmsr1.trajectory import Status, Trajectory


def judged(asked: Asked) -> Reply:
    """What both judges take for a verdict."""
    rates = "UTILITY" in asked.json()["messages"][0]["content"]
    return said("UTILITY: 5" if rates else "VERDICT: correct")


@pytest.fixture
def options() -> Iterator[dict[str, dict[str, Any]]]:
    two = [{"weight": 2.0, "reward": "mmsearch"}, {"weight": -1.0, "label": "again", "reward": {"name": "mmsearch"}}]
    with Vendor(judged) as v:
        judge = {"url": v.url, "model": "m"}
        routes = [{"source": "*", "reward": "math"}]
        yield {"sum": {"terms": two}, "by_source": {"routes": routes}, "judge": judge, "query_utility": judge}


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
def test_what_ships_holds_to_the_contract(name: str, options: dict[str, dict[str, Any]]) -> None:
    check_reward(reward.get(name, **options.get(name, {})))


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


def test_a_sum_logs_every_part_of_each_term() -> None:
    right = ["<reason>r</reason><search><img></search>", "<reason>r</reason><answer>Lisbon</answer>"]
    dear = {"name": "mmsearch", "search_penalty": 0.5}
    terms = [{"weight": 1.0, "reward": "mmsearch"}, {"label": "dear", "weight": 0.5, "reward": dear}]
    values = reward.get("sum", terms=terms).score(right, ["Lisbon"])
    # 0.9 * 0.9 + 0.1 = 0.91, and 0.9 * 0.5 + 0.1 = 0.55.
    assert values["reward"] == pytest.approx(0.91 + 0.5 * 0.55)
    assert (values["mmsearch/reward"], values["dear/reward"]) == (pytest.approx(0.91), pytest.approx(0.55))
    assert (values["mmsearch/searches"], values["dear/acc"], values["dear/format"]) == (1.0, 1.0, 1.0)
    assert (values["acc"], values["format"], values["searches"]) == (1.0, 1.0, 1.0)
    with pytest.raises(UsageError, match=r"unknown key reward\.terms"):
        parse({"model": {"path": "m"}, "reward": {"name": "sum", "terms": [{"wieght": 1.0, "reward": "mmsearch"}]}})
    with pytest.raises(UsageError, match="two terms are called mmsearch: give one of them a label"):
        reward.get("sum", terms=[{"reward": "mmsearch"}, {"reward": dear}])


def test_each_source_has_its_reward_and_one_without_ends_the_run() -> None:
    routes = [{"source": "*mmsearch_r1*", "reward": "mmsearch"}, {"source": "open-r1", "reward": "math"}]
    by_source = reward.get("by_source", routes=routes)
    t = Trajectory("p", "g", 0, "How much?", ["1/2"], status=Status.ANSWERED)
    t.append("assistant", [1], "<reason>r</reason><answer>0.5</answer>", logprobs=[0.0])
    t.data_source = "mmsearch_r1/fvqa"
    assert resolved(by_source.parts(t))["acc"] == 0.0  # no exact match
    t.data_source = "open-r1"
    assert resolved(by_source.parts(t))["acc"] == 1.0
    t.data_source = "Open-R1"
    with pytest.raises(UsageError, match=r"none fits data_source 'Open-R1' \(there are \*mmsearch_r1\*, open-r1\)"):
        by_source.parts(t)


def test_what_a_sum_needs_is_what_its_terms_need() -> None:
    """A run in a thread only if all terms may, many calls at once if one waits, and the success of the most demanding."""
    judge = {"name": "judge", "url": "http://127.0.0.1:1", "model": "m", "min_success": 0.9}
    rules = reward.get("sum", terms=[{"reward": "mmsearch"}, {"reward": "repetition"}])
    assert (rules.in_process, rules.waits, reward.min_success(rules.settings)) == (True, False, 0.0)
    maths = reward.get("sum", terms=[{"reward": "mmsearch"}, {"reward": "math"}])
    assert (maths.in_process, maths.waits) == (False, False)
    nested = {"name": "sum", "terms": [{"reward": judge}]}
    asks = reward.get("by_source", routes=[{"source": "a", "reward": "math"}, {"source": "b", "reward": nested}])
    assert (asks.in_process, asks.waits, reward.min_success(asks.settings)) == (False, True, 0.9)


REWARDS_PAGE = Path(__file__).parent.parent / "docs" / "rewards.md"


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```$", REWARDS_PAGE.read_text(), re.MULTILINE | re.DOTALL))
def test_the_page_s_configs_are_read(text: str) -> None:
    assert reward.from_settings(parse({"model": {"path": "m"}} | yaml.safe_load(text)).reward)


def test_the_page_has_every_reward_and_where_it_runs(options: dict[str, dict[str, Any]]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\w ]+) \|$", REWARDS_PAGE.read_text(), re.MULTILINE))
    parts = {n: reward.get(n, **options.get(n, {})).in_process for n in reward.REGISTRY.names()}
    told = {
        n: where if n in ("sum", "by_source") else "worker" if here else "process"
        for n, here, where in ((n, here, rows.get(n)) for n, here in parts.items())
    }
    assert rows == told


def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_examples("reward.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    alone = parse({"model": {"path": "m"}} | yaml.safe_load(files["alone.yaml"].read_text()))
    assert reward.from_settings(alone.reward).score(["two words"], []) == {"reward": 1.0, "words": 2.0}
    both = parse({"model": {"path": "m"}} | yaml.safe_load(files["sum.yaml"].read_text()))
    values = reward.from_settings(both.reward).score(["<reason>r</reason><answer>Lisbon</answer>"], ["Lisbon"])
    assert values["reward"] == pytest.approx(1.5)
    exec(files["check_brief.py"].read_text() + "\ntest_contract()\n", {})
