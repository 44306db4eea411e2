"""What the commands of README and docs write into a checkout is not offered to git, keys least of all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def ignored(path: str) -> bool:
    return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "path",
    [
        "gateway.keys",
        "keys",
        "search.key",
        ".env",
        "my-model/config.json",
        "my-model/model.safetensors",
        "models/a/config.json",
        "anywhere/model-00001-of-00002.safetensors",
        "store.sqlite",
        "store.sqlite-wal",
        "a.mmsr1snap",
        "recorded/corpus.jsonl",
        "build/atlas/train.parquet",
        "runs/atlas/metrics.jsonl",
    ],
)
def test_written_by_a_command(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize(
    "path", ["serving/keys.py", "megatron_mmsr1/models/qwen2_vl/family.py", "tests/test_gateway_keys.py", "configs/atlas.yaml"]
)
def test_sources_are_not(path: str) -> None:
    assert not ignored(path)


def test_no_tracked_file_is_ignored() -> None:
    """The shipped checkpoints among them."""
    said = subprocess.run(
        ["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout == ""
