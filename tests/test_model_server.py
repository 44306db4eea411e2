"""A run starts the model that summarises its pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from loop_fixtures import COLD_START, ONE_RANK, metrics, mmsr1, settings

pytestmark = pytest.mark.slow


def test_pages_are_summarised_by_a_model_of_the_runs_own(atlas_world: Path, tmp_path: Path) -> None:
    """The tiny model says nothing worth reading, but it is asked and answers."""
    more = ["train.steps=1", "data.heldout=[]", "search.summarise={backend: openai, model: tiny}", *ONE_RANK]
    more += [f"placement.summariser.model={COLD_START}", "search.summarise.options={max_tokens: 16}"]
    out = tmp_path / "run"
    done = mmsr1("train", "configs/atlas.yaml", *settings(atlas_world, out, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = metrics(out)
    assert row["search_server/openai/ok"] >= row["tool/calls_text"] > 0  # each text search reads and condenses pages
