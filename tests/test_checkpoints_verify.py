"""`mmsr1 checkpoints verify`: every broken file of every checkpoint is named, and which one to go on from."""

from __future__ import annotations

from pathlib import Path

import pytest

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.errors import RunError


def write(directory: Path, **files: bytes) -> Path:
    directory.mkdir(parents=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    manifest.of_directory(directory, manifest.checksums(directory, files)).write(directory)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints of two files, and the model; the run resumes from the third."""
    for step in (50, 100, 150):
        write(tmp_path / "checkpoints" / f"step_{step:06d}", shard=bytes(range(256)) * 40, extra=b"extra")
    (tmp_path / "checkpoints" / "latest").write_text("step_000150\n")
    write(tmp_path / "model", weights=b"w" * 100)
    return tmp_path


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def verify(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["checkpoints", "verify", str(path)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_whole_run_says_where_it_resumes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = verify(run, capsys)
    assert code == 0 and out.count("whole: ") == 4 and "BROKEN" not in out
    assert out.endswith("the run resumes from step_000150, which is whole\n")


def test_every_broken_file_is_named_with_the_checkpoint_to_resume_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints" / "step_000150"
    damage(newest / "shard")
    (newest / "extra").unlink()
    damage(run / "model" / "weights")
    code, out, err = verify(run, capsys)
    assert code == 1 and out.count("whole: ") == 2
    assert f"{newest}/extra is missing" in out and f"{newest}/shard has changed since it was written" in out
    assert "2 of 4 broken (step_000150, model)" in err
    assert f"resume from step_000100: echo step_000100 > {run}/checkpoints/latest" in err and f"export {run}/model again" in err


def test_the_advice_is_one_that_a_resume_takes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step_000150" / "shard").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"shard is torn: 4 of 10240 bytes.*mmsr1 checkpoints verify RUN"):
        manifest.verify(manifest.latest(run / "checkpoints") or run, contents=True)
    command = verify(run, capsys)[2].partition("echo ")[2].strip()
    name, _, file = command.partition(" > ")
    Path(file).write_text(name + "\n")
    assert manifest.verify(manifest.latest(run / "checkpoints") or run, contents=True)
    assert verify(run / "checkpoints", capsys)[2].endswith("the run resumes from step_000100, which is whole\n")


def test_one_checkpoint_of_several(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints" / "step_000150"
    assert verify(newest, capsys)[0] == 0
    damage(newest / "shard")
    code, _, err = verify(newest, capsys)
    assert code == 1 and f"mmsr1 checkpoints verify {run} looks at the others too" in err


def test_a_checkpoint_without_its_manifest_is_not_complete(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for directory in (run / "checkpoints").glob("step_*"):
        (directory / "manifest.json").unlink()
    code, out, err = verify(run, capsys)
    assert code == 1 and out.count("manifest.json is missing; it is not complete") == 3
    assert f"none is whole: remove {run}/checkpoints" in err


def test_what_is_no_run_is_the_person_s_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, capsys)[0] == 2
    assert verify(tmp_path / "none", capsys)[0] == 2
