"""Ctrl-C in a run: what is said of what would be lost, and how to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.run.stop import Stop


def checkpoint(out: Path, name: str) -> None:
    directory = out / "checkpoints" / name
    directory.mkdir(parents=True)
    manifest.of_directory(directory, {}).write(directory)
    (out / "checkpoints" / "latest").write_text(name)


@pytest.mark.parametrize(
    ("kept", "since"), [(None, "the start (there is no checkpoint yet)"), ("step_000004", "the checkpoint step_000004")]
)
def test_both_interrupts_name_where_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str | None, since: str
) -> None:
    if kept:
        checkpoint(tmp_path, kept)
    stop = Stop(tmp_path)
    assert not stop.requested
    stop.ask()
    assert stop.requested and stop.asked
    said = capsys.readouterr().err
    assert "stopping after this step, with a checkpoint" in said and f"steps since {since} would then be trained again" in said
    stop.say_what_is_lost()
    assert f"stopped at once. The same command goes on from {since}" in capsys.readouterr().err
    stop.withdraw()
    assert not stop.requested
