"""manifest.json: what a checkpoint directory must hold, file by file, and what weights those are.

It is written last, so a directory without it is not complete. Sizes tell a torn file at once; the SHA-256 of each file tells
one whose bits changed on the disk, at the cost of reading all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_mmsr1.errors import RunError

MANIFEST, LATEST = "manifest.json", "latest"
ADVICE = (
    "resume from another checkpoint, by writing its name into the file `latest` beside it; mmsr1 checkpoints verify RUN says "
    "which are whole"
)
EXPORT_AGAIN = "download or export the checkpoint again"


@dataclass(slots=True, frozen=True)
class Manifest:
    """`files`: name -> (bytes, SHA-256 in hex or "" where it was never taken)."""

    files: dict[str, tuple[int, str]]
    layout: list[int] = field(
        default_factory=list[int]
    )  # tensor, pipeline, data parallel size that wrote a training checkpoint
    step: int | None = None  # train steps done
    weights: str = ""  # names the weights (`megatron.weights_id`)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(size for size, _ in self.files.values())

    def write(self, directory: Path) -> None:
        files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(self.files.items())}
        d = {"layout": self.layout, "step": self.step, "weights": self.weights, "files": files}
        (directory / MANIFEST).write_text(json.dumps(d, indent=1) + "\n")


def of_directory(directory: Path, digests: Mapping[str, str], **facts: Any) -> Manifest:
    """Of every file that is there now; `digests` as `checksums` gives them, for some of the files or all."""
    names = sorted(f.name for f in directory.iterdir() if f.is_file() and f.name != MANIFEST)
    return Manifest({n: ((directory / n).stat().st_size, digests.get(n, "")) for n in names}, **facts)


def checksums(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 in hex of each file, several at once."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        chosen = list(names)
        return dict(zip(chosen, pool.map(_sha256, [directory / n for n in chosen]), strict=True))


def read(directory: Path, advice: str = ADVICE) -> Manifest:
    """RunError for a directory without a manifest or with a damaged one."""
    file = directory / MANIFEST
    try:
        d = json.loads(file.read_text())
        # Before checksums were taken a file's entry was its size alone.
        files = {n: (f, "") if isinstance(f, int) else (int(f["bytes"]), str(f["sha256"])) for n, f in d["files"].items()}
        return Manifest(files, list(d.get("layout", [])), d.get("step"), str(d.get("weights", "")))
    except FileNotFoundError:
        raise RunError(f"no complete checkpoint at {directory}: {file} is missing; {advice}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise RunError(f"{file} is damaged ({e!r}); {advice}") from None


def verify(directory: Path, *, contents: bool, advice: str = ADVICE, part: tuple[int, int] = (0, 1)) -> Manifest:
    """The manifest, once every file was found as it says. RunError naming the file that is missing, torn or changed.

    `contents`: compare checksums too, where the manifest has them. `part` (i, n): read every n-th file only, from the i-th on,
    so that n ranks share the reading; sizes are compared of all.
    """
    held = read(directory, advice)
    for fault in faults(directory, held, contents=contents, part=part):
        raise RunError(f"{fault}; {advice}")
    return held


def faults(directory: Path, held: Manifest, *, contents: bool, part: tuple[int, int] = (0, 1)) -> Iterator[str]:
    """A sentence a file that is not as the manifest says: sizes first, then checksums of those whose size is right."""
    right = dict[str, str]()  # name -> checksum
    for name, (size, digest) in sorted(held.files.items()):
        file = directory / name
        if not file.is_file():
            yield f"checkpoint file {file} is missing"
        elif file.stat().st_size != size:
            yield f"checkpoint file {file} is torn: {file.stat().st_size} of {size} bytes"
        elif digest:
            right[name] = digest
    if contents:
        for name, digest in checksums(directory, [*right][part[0] :: part[1]]).items():
            if digest != right[name]:
                yield (
                    f"checkpoint file {directory / name} has changed since it was written: its SHA-256 is another, a disk or a "
                    "copy damaged it"
                )


def directories(parent: Path) -> list[Path]:
    """The checkpoints in `parent` by their step, complete or not; those that are being written have other names."""
    return sorted(d for d in parent.glob("step_*") if d.is_dir())


def named_latest(parent: Path) -> str:
    """What the file `parent/latest` names; "" without it."""
    pointer = parent / LATEST
    return pointer.read_text().strip() if pointer.is_file() else ""


def latest(parent: Path) -> Path | None:
    """The checkpoint that the file `parent/latest` names; None without that file. RunError if it names nothing complete."""
    pointer = parent / LATEST
    if not pointer.is_file():
        return None
    name = named_latest(parent)
    if not name or not (parent / name / MANIFEST).is_file():
        raise RunError(f"{pointer} names {name!r}, which is not a complete checkpoint: write another's name there")
    return parent / name


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
