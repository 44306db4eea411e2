"""Every engine that ships, run through the contract; and engines that break it, refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts import engine as contract
from contracts.engine import CONTRACT, EngineUnderTest
from engine_fixtures import tested, transformers_engine  # noqa: F401

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.rollout import engines


@pytest.mark.parametrize("rule", CONTRACT, ids=lambda r: r.__name__)
def test_the_contract(tested: EngineUnderTest, rule):  # noqa: F811
    rule(tested)


def test_a_bad_checkpoint(tested: EngineUnderTest, tmp_path: Path):  # noqa: F811
    contract.a_bad_checkpoint_is_an_error_that_names_the_engine(tested, tmp_path)


def test_what_is_no_engine_is_refused_with_its_file(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("class Engine:\n    def command(self): ...\n    def client(self): ...\n")
    with pytest.raises(UsageError, match=r"engine\.name=.*mine\.py breaks the contract of a engine: it has no method control"):
        engines.get(f"{file}:Engine")
