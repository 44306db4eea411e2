"""The trainer over real megatron-core: one job runs the cases of all world sizes, in real ranks (`megatron_cases/`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from megatron_cases.cases import CASES, SLOW

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Tiny checkpoints (one of each model family, two with tied embeddings, one of five layers), and what became of
    each case: results_<world>.json holds "" or what went wrong. Worlds smaller than one that is asked for run first."""
    from megatron_cases import tiny

    path = tmp_path_factory.mktemp("megatron")
    tiny.make_checkpoint(path / "tiny")
    tiny.make_checkpoint(path / "tied", tied=True)
    tiny.make_checkpoint(path / "qwen2_vl", family="qwen2_vl")
    tiny.make_checkpoint(path / "qwen3_vl", family="qwen3_vl")
    tiny.make_checkpoint(path / "qwen3_vl_tied", family="qwen3_vl", tied=True)
    tiny.make_checkpoint(path / "qwen3_vl_moe", family="qwen3_vl_moe")
    tiny.make_checkpoint(path / "qwen3_vl_moe_odd", family="qwen3_vl_moe", layers=5)
    tiny.make_checkpoint(path / "qwen2", family="qwen2")
    tiny.make_checkpoint(path / "qwen3", family="qwen3", tied=True)
    asked = [item for item in request.session.items if item.path == request.path]
    worlds = [str(world) for world in CASES if world <= max(item.callspec.params["world"] for item in asked)]  # type: ignore[attr-defined]
    slow = {"MMSR1_SLOW_CASES": "1"} if any(item.get_closest_marker("slow") for item in asked) else {}
    with (path / "log.txt").open("w") as log:
        subprocess.run(
            [sys.executable, str(HERE / "megatron_cases" / "worker.py"), str(path), *worlds],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"} | slow,
            check=False,
        )
    return path


@pytest.mark.timeout(3600)  # the first test waits for all of the cases, on a machine that may be busy
@pytest.mark.parametrize(
    ("world", "name"),
    [pytest.param(w, n, marks=[pytest.mark.slow] * (n in SLOW.get(w, ()))) for w, cases in CASES.items() for n in cases],
)
def test_megatron(root: Path, world: int, name: str) -> None:
    results = root / f"results_{world}.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    if name not in found:
        pytest.fail(f"the job of {world} ranks ended before this case:\n" + (root / "log.txt").read_text()[-4000:])
    assert found[name] == "", found[name]
