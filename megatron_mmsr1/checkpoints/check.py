"""All checkpoints of a run read and compared with their manifests, and which of them to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.checkpoints.manifest import LATEST, MANIFEST, directories, faults, named_latest, read
from megatron_mmsr1.errors import RunError, UsageError


@dataclass(slots=True, frozen=True)
class Checked:
    """`faults`: a sentence a broken file; empty for a whole directory. `files` and `bytes`: what its manifest names."""

    directory: Path
    faults: list[str]
    files: int = 0
    bytes: int = 0


def to_check(source: Path) -> list[Path]:
    """The directories with a manifest, or that should have one, below a run, its checkpoints/, or one of them; the model last.

    UsageError where there is none.
    """
    if (source / MANIFEST).is_file() or source.name.startswith("step_"):
        return [source]
    home = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    found = directories(home)
    model = source / "model"
    found += [model] if (model / MANIFEST).is_file() else []
    if not found:
        raise UsageError(f"{source} holds no checkpoint: name a run, its checkpoints/, one step_NNNNNN, or an exported model")
    return found


def check(chosen: list[Path]) -> Iterator[Checked]:
    """Each one after every file of it was read: minutes for a large one."""
    for directory in chosen:
        try:
            held = read(directory, "it is not complete")
        except RunError as e:
            yield Checked(directory, [str(e)])
            continue
        broken = list(faults(directory, held, contents=True))
        yield Checked(directory, broken, len(held.files), held.bytes)


def advice(checked: list[Checked]) -> str:
    """What to do, in a sentence: where the run resumes now, or where it should."""
    steps = [c for c in checked if c.directory.name.startswith("step_")]
    whole = [c.directory.name for c in steps if not c.faults]
    said = [f"export {c.directory} again" for c in checked if c.faults and c not in steps]
    if steps:
        home = steps[0].directory.parent
        named = named_latest(home)
        if named in whole:
            said.insert(0, f"the run resumes from {named}, which is whole")
        elif len(steps) < sum(1 for _ in home.glob("step_*")):
            said.insert(0, f"mmsr1 checkpoints verify {home.parent} looks at the others too")
        elif whole:
            said.insert(0, f"resume from {whole[-1]}: echo {whole[-1]} > {home / LATEST}")
        else:
            said.insert(
                0, f"none is whole: remove {home}, and the same command begins at step 0, with the rollouts that are kept"
            )
    return "; ".join(said)
