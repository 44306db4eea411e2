"""scripts/test.sh as a caller sees it: its exit code, and what it shows, for each thing that can fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "test.sh"


@pytest.mark.parametrize("failing", [None, "ruff", "pyright", "python"])
def test_the_exit_code_is_zero_if_and_only_if_every_part_passed(failing: str | None, tmp_path: Path) -> None:
    """The script is ours; the programs that it calls are stand-ins here, because the real ones take half an hour."""
    scripts, bin = tmp_path / "scripts", tmp_path / "venv" / "bin"
    scripts.mkdir()
    bin.mkdir(parents=True)
    shutil.copy(SCRIPT, scripts)
    programs = {scripts / "env.sh": f"echo {tmp_path / 'venv'}", scripts / "browser.sh": "echo a browser"}
    for name in ("ruff", "pyright", "python"):
        programs[bin / name] = f"echo {name} was asked; exit {int(name == failing)}"
    for path, text in programs.items():
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    done = subprocess.run([scripts / "test.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (failing is None), done
    assert ("pyright was asked" in done.stderr) == (failing == "pyright")
    assert ("python was asked" in done.stdout) == (failing != "ruff")
