"""Every part of an algorithm that ships, and the one of docs/extend/algorithm.md, holds to the contract; broken ones do not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from contracts.algorithm import CHECKS
from doc_examples import write_examples

from megatron_mmsr1.algorithm import recipes
from megatron_mmsr1.algorithm.composition import compose, part
from megatron_mmsr1.config import parse
from megatron_mmsr1.errors import UsageError

SEAMS = {seam: import_module(f"megatron_mmsr1.algorithm.{seam}").REGISTRY for seam in CHECKS}
SHIPPED = [(seam, name) for seam, registry in SEAMS.items() for name in registry.names()]

PART = """
import torch
from megatron_mmsr1.config.section import Section

class Settings(Section):
    name: str = "broken"

class Broken:
    Settings = Settings
    needs = frozenset({needs})
    def __init__(self, settings): pass
    def losses(self, logprobs, old_logprobs, advantages, cu_seqlens):
        return {value}
"""


def test_two_of_each_ship() -> None:
    assert all(len(registry.names()) >= 2 for registry in SEAMS.values())


@pytest.mark.parametrize(("seam", "name"), SHIPPED)
def test_what_ships_holds_to_the_contract(seam: str, name: str) -> None:
    CHECKS[seam](part(SEAMS[seam], name, {}))


def test_the_page_of_all_parts_has_each_with_its_options() -> None:
    page = (Path(__file__).parent.parent / "docs" / "algorithms.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for seam, name in SHIPPED:
        settings = set(SEAMS[seam].get(name).Settings.model_fields) - {"name", "input_clamp", "output_clamp"}
        assert any(line.startswith(f"| `{name}` |") and all(f"`{s}`" in line for s in settings) for line in rows), (seam, name)
    shown = {n for line in rows for n in line.split("|")[1].replace("`", "").replace(" ", "").split(",")}
    assert set(recipes.REGISTRY.names()) <= shown


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("logprobs.mean()", "one value a token"),
        ("-advantages * logprobs.double()", "float32"),
        ("logprobs / 0", "not finite"),
        ("-advantages * (logprobs - old_logprobs)", "no gradient may flow to old_logprobs"),
        ("-advantages * logprobs * logprobs.detach().mean()", "the responses beside it"),
        ("-advantages * logprobs + torch.rand(1)", "the responses beside it"),
    ],
)
def test_a_broken_loss_breaks_a_rule(tmp_path: Path, value: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(PART.format(needs="()", value=value))
    with pytest.raises(AssertionError, match=said):
        CHECKS["policy_losses"](part(SEAMS["policy_losses"], f"{file}:Broken", {}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            PART.format(needs="{'all'}", value="logprobs"),
            "its needs must be a frozenset of advantages, engine, logprobs, old, reference, selected",
        ),
        (PART.format(needs="{'selected'}", value="logprobs"), "it needs selected but has no method select"),
        (PART.format(needs="()", value="logprobs").replace("losses", "loses"), "it has no method losses"),
        ("Broken = 3", "it must be a class"),
    ],
)
def test_a_broken_class_is_refused_by_file_and_rule_when_the_config_is_read(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UsageError) as e:
        parse({"model": {"path": "m"}, "algorithm": {"policy_loss": f"{file}:Broken"}})
    assert said in str(e.value) and str(file) in str(e.value) and "algorithm.policy_loss" in str(e.value)


def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_examples("algorithm.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    raw: dict[str, Any] = yaml.safe_load(files["mine.yaml"].read_text())
    algorithm = compose(parse({"model": {"path": "m"}} | raw).algorithm)
    assert type(algorithm.policy_loss).__name__ == "Squared" and algorithm.needs == {"old", "engine"}
    assert algorithm.policy_loss.settings.width == 0.5  # type: ignore[attr-defined]
    # r = e, width .5, A = 2: -2 * 1 + (1 / .5)**2 / 2 = 0.
    one = torch.ones(1)
    assert algorithm.policy_loss.losses(one, 0 * one, 2 * one, torch.tensor([0, 1])).tolist() == [0.0]
    exec(files["check_squared.py"].read_text() + "\ntest_contract()\n", {})
