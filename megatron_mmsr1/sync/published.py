"""Which weights were published last, as a small file beside them: an engine that is started again begins with these."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_mmsr1.data.files import write_text

FILE = "current.json"


def write(home: Path, directory: Path, version: int) -> None:
    """Atomic: a reader sees the last publication or this one."""
    write_text(home / FILE, json.dumps({"version": version, "path": str(directory.resolve())}))


def read(home: Path) -> tuple[Path, int] | None:
    """(checkpoint, version); None if nothing was published or the checkpoint is gone."""
    try:
        said = json.loads((home / FILE).read_text())
    except FileNotFoundError:
        return None
    path = Path(said["path"])
    return (path, int(said["version"])) if (path / "config.json").is_file() else None
