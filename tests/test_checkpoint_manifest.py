"""A checkpoint's manifest: what is missing, torn or changed is named, and older manifests are still read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.checkpoints.manifest import MANIFEST
from megatron_mmsr1.errors import RunError

FILES = {"__0_0.distcp": bytes(range(256)) * 40, "extra.pt": b"extra", "common.pt": b""}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "step_000002"
    directory.mkdir()
    for name, data in FILES.items():
        (directory / name).write_bytes(data)
    held = manifest.of_directory(directory, manifest.checksums(directory, FILES), layout=[2, 1, 1], step=2, weights="w")
    held.write(directory)
    return directory


def test_a_whole_checkpoint_passes_with_its_facts(checkpoint: Path) -> None:
    held = manifest.verify(checkpoint, contents=True)
    assert (held.layout, held.step, held.weights) == ([2, 1, 1], 2, "w")
    assert {n: size for n, (size, _) in held.files.items()} == {n: len(d) for n, d in FILES.items()}


def test_one_flipped_bit_is_found_and_the_file_named(checkpoint: Path) -> None:
    file = checkpoint / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    place = random.Random(0).randrange(len(data))
    data[place] ^= 1
    file.write_bytes(data)
    manifest.verify(checkpoint, contents=False)  # its size is as it was
    with pytest.raises(RunError, match=r"__0_0\.distcp has changed since it was written.*latest"):
        manifest.verify(checkpoint, contents=True)


@given(st.integers(1, 5))
def test_ranks_that_share_the_reading_find_it_together(tmp_path_factory: pytest.TempPathFactory, ranks: int) -> None:
    directory = tmp_path_factory.mktemp("c")
    for name, data in FILES.items():
        (directory / name).write_bytes(data)
    manifest.of_directory(directory, manifest.checksums(directory, FILES)).write(directory)
    (directory / "extra.pt").write_bytes(b"extrb")
    found = 0
    for rank in range(ranks):
        try:
            manifest.verify(directory, contents=True, part=(rank, ranks))
        except RunError:
            found += 1
    assert found == 1  # every file is read by one rank


@pytest.mark.parametrize(("damage", "says"), [("remove", "missing"), ("cut", "is torn: 100 of 10240 bytes")])
def test_a_missing_and_a_torn_file_are_named(checkpoint: Path, damage: str, says: str) -> None:
    file = checkpoint / "__0_0.distcp"
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=says) as refused:
        manifest.verify(checkpoint, contents=False)
    assert str(file) in str(refused.value)


def test_manifests_of_sizes_alone_are_still_read(checkpoint: Path) -> None:
    old = {"layout": [1, 1, 1], "files": {n: len(d) for n, d in FILES.items()}}
    (checkpoint / MANIFEST).write_text(json.dumps(old))
    assert manifest.verify(checkpoint, contents=True).layout == [1, 1, 1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {"bytes": 1}}}'])
def test_a_damaged_manifest_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / MANIFEST).write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        manifest.read(checkpoint)


def test_latest_names_a_complete_checkpoint_or_is_refused(checkpoint: Path) -> None:
    parent = checkpoint.parent
    assert manifest.latest(parent) is None
    (parent / "latest").write_text("step_000002")
    assert manifest.latest(parent) == checkpoint
    (parent / "latest").write_text("step_000009")
    with pytest.raises(RunError, match="step_000009"):
        manifest.latest(parent)
