"""The commands of the pages that want an engine or ranks, one after the other as a reader would run them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import httpx
import pytest
from doc_commands import FEW, MINUTES, SERVERS, WORLD
from doc_place import Place

from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout.dump import read_dump

pytestmark = pytest.mark.slow  # a quarter of an hour: ./scripts/test.sh --slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    assert Path(sys.prefix, ".mmsr1-lock").is_file(), "this environment was not made by scripts/env.sh"
    found = Place(tmp_path_factory.mktemp("place"))
    found.run(f"mmsr1 atlas build build/atlas entities=24 {WORLD}", "", "wrote build/atlas")
    found.run("mmsr1 maths build build/maths train_questions=64 heldout_questions=16", "", "wrote build/maths")
    return found


def test_the_story_of_the_pages(place: Place, atlas_engine: Service) -> None:
    for text, (added, says) in MINUTES.items():
        added = added.format(engine=atlas_engine.url)
        if text.startswith(SERVERS):
            with place.serving(text, added, says) as url:
                assert httpx.get(f"{url}/health", timeout=60, trust_env=False).status_code == 200
        else:
            place.run(text, added, says)
    left = {"my-model/serving.yaml", "my-model/README.md", "runs/atlas/eval/policies.json", "runs/atlas-sft/model/config.json"}
    left |= {f"out/{name}.json" for name in ("load", "host", "gateway")}
    assert not [name for name in left if not (place.home / name).is_file()]


def test_a_model_is_evaluated_by_an_engine_of_its_own(place: Place) -> None:
    done = place.run("mmsr1 eval configs/atlas.yaml model.path=my-model output=runs/of-my-model", FEW, "accuracy")
    assert "evaluating 6 questions (my-model)" in done.stderr
    assert json.loads((place.home / "runs/of-my-model/eval/model.json").read_text())["rows"][-1]["n"] == 6


def test_a_cold_start_from_a_file_of_trajectories(place: Place) -> None:
    """Rollouts of the run that answered, as a file; their pictures go into the new run's images."""
    made, _ = read_dump(place.home / "runs/atlas/rollouts", 0)
    chosen = [t for t in made if t.sampled_tokens][:8]
    (place.home / "demos.jsonl").write_text("".join(json.dumps(t.to_dict()) + "\n" for t in chosen))
    shutil.copytree(place.home / "runs/atlas/images", place.home / "runs/from-file/images")
    text = "mmsr1 sft configs/atlas-sft.yaml model.path=build/atlas/model sft.source=demos.jsonl output=runs/from-file"
    place.run(text, "train.steps=2 sft.examples_per_step=4", "")
    rows = [json.loads(line) for line in (place.home / "runs/from-file/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 1] and all(r["tokens"] > 0 and r["seconds/train"] > 0 for r in rows)
