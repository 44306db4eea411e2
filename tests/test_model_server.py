"""A run starts the models that summarise its pages and judge its answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_checkpoint
from loop_fixtures import COLD_START, ONE_RANK, metrics, mmsr1, settings

from megatron_mmsr1.atlas.tokenizer import CHAT_TEMPLATE

pytestmark = pytest.mark.slow
VERDICT = "VERDICT: correct"


def test_pages_are_summarised_and_answers_judged_by_models_of_the_runs_own(atlas_world: Path, tmp_path: Path) -> None:
    """The tiny summariser says nothing worth reading, but it is asked and answers. The judge finds all right."""
    judge = tiny_checkpoint.write(tmp_path / "judge", chain=[f"\n{VERDICT}<|im_end|>"], phrases=[VERDICT])
    (judge / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    more = ["train.steps=1", "data.heldout=[]", "search.summarise={backend: openai, model: tiny}", *ONE_RANK]
    more += [f"placement.summariser.model={COLD_START}", "search.summarise.options={max_tokens: 16}"]
    more += [f"placement.judge={{model: {judge}, name: kind}}", "reward={name: judge, model: kind}"]
    out = tmp_path / "run"
    done = mmsr1("train", "configs/atlas.yaml", *settings(atlas_world, out, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = metrics(out)
    assert row["search_server/openai/ok"] >= row["tool/calls_text"] > 0  # each text search reads and condenses pages
    assert row["reward/acc"] == 1.0 and row["status/answered"] == 24  # whatever was answered
