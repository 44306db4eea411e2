"""Is a training checkpoint whole? What can be told from its file sizes, without loading megatron-core."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_mmsr1.errors import RunError

MANIFEST, LATEST = "manifest.json", "latest"


def latest(parent: Path) -> Path | None:
    """The checkpoint that the file `parent/latest` names; None without that file. RunError if it names nothing complete."""
    pointer = parent / LATEST
    if not pointer.is_file():
        return None
    name = pointer.read_text().strip()
    if not name or not (parent / name / MANIFEST).is_file():
        raise RunError(f"{pointer} names {name!r}, which is not a complete checkpoint: write another's name there")
    return parent / name


def verify(directory: Path) -> tuple[str, list[int]]:
    """(what is wrong with the checkpoint or "", the layout that wrote it)."""
    advice = "resume from another checkpoint, by writing its name into the file `latest` beside it"
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        return f"no complete checkpoint at {directory}: {directory / MANIFEST} is missing; {advice}", []
    except ValueError as e:
        return f"{directory / MANIFEST} is damaged ({e}); {advice}", []
    for name, size in manifest["files"].items():
        file = directory / name
        if not file.is_file():
            return f"checkpoint file {file} is missing; {advice}", []
        if file.stat().st_size != size:
            return f"checkpoint file {file} is torn: {file.stat().st_size} of {size} bytes; {advice}", []
    return "", manifest["layout"]
