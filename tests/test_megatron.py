"""The trainer over real megatron-core: one torchrun job a world size runs all of its cases (`megatron_cases/`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from megatron_cases.cases import CASES

from megatron_mmsr1.procs.ports import free_port

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints: one of each model family, one with tied embeddings."""
    from megatron_cases import tiny

    path = tmp_path_factory.mktemp("megatron")
    tiny.make_checkpoint(path / "tiny")
    tiny.make_checkpoint(path / "tied", tied=True)
    tiny.make_checkpoint(path / "qwen2_vl", family="qwen2_vl")
    return path


def run(root: Path, world: int) -> dict[str, str]:
    """What became of each case of this world size: "" or what went wrong. The smaller worlds run first."""
    results = root / f"results_{world}.json"
    if not results.exists():
        if world > 1:
            run(root, world // 2)
        results.write_text("{}")  # a job that dies must not be started again by each test
        worker = [str(HERE / "megatron_cases" / "worker.py"), str(root)]
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={world}", f"--master-port={free_port()}"]
        with (root / f"log_{world}.txt").open("w") as log:
            subprocess.run(
                [sys.executable, *launch, *worker],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"},
                check=False,
            )
    return json.loads(results.read_text())


@pytest.mark.timeout(3600)  # the first test of a world waits for all of its cases, on a machine that may be busy
@pytest.mark.parametrize(("world", "name"), [(w, n) for w, cases in CASES.items() for n in cases])
def test_megatron(root: Path, world: int, name: str) -> None:
    found = run(root, world)
    if name not in found:
        pytest.fail(f"the job of {world} ranks ended before this case:\n" + (root / f"log_{world}.txt").read_text()[-4000:])
    assert found[name] == "", found[name]
