"""Changing the weights of several engines at once: all of them, or none, or those that are in doubt sample nothing.

What an engine holds after an update that failed is not known. SGLang, for one, answers "rolling back" and then reads the files
of the failed update again. So no engine samples while its weights change; after a failure all are given the last good weights,
their checksums are compared with those from before, and only then do they go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megatron_mmsr1.errors import RunError

if TYPE_CHECKING:
    from megatron_mmsr1.rollout.engines.base import Control


@dataclass(slots=True)
class Good:
    """The weights that the engines are known to hold."""

    version: int
    load: Callable[[Control], None] | None  # puts them back; None: they cannot be had again
    checksums: dict[str, str] = field(default_factory=dict[str, str])  # an engine


def update(
    engines: Sequence[Control],
    change: Callable[[Sequence[Control]], dict[str, str]],
    version: int,
    *,
    last: Good | None = None,
    again: Callable[[Control], None] | None = None,
) -> Good:
    """Run `change` on the engines while they are paused, and see each one answer with `version`. Returns what they hold now.

    `change` returns URL -> reason of those that failed, as `everywhere` does. `last`: what they hold before, to be put back
    after a failure. `again`: puts the new weights back after a later failure.
    Raises RunError that names every engine that failed, why, and what the engines hold now.
    """
    failed = everywhere(engines, lambda e: e.pause("abort"))
    if not failed:
        failed = change(engines)
        checksums = {} if failed else _checksums(engines, failed)
        if not failed:
            failed = everywhere(engines, lambda e: _resume(e, version))
        if not failed:
            return Good(version, again, checksums)
    said = "weight update failed: " + "; ".join(failed.values())
    raise RunError(f"{said}. {_restore(engines, last, failed)}")


def _restore(engines: Sequence[Control], last: Good | None, failed: dict[str, str]) -> str:
    """Put the last good weights back; a sentence about what the engines hold now."""
    everywhere(engines, lambda e: e.pause("abort"))  # also those that had gone on; a dead one shows below
    if last is None or last.load is None:
        return (
            "What the engines hold is not known: they are paused and sample nothing. The same command resumes the run, which "
            "gives them whole weights"
        )
    put_back = last.load
    doubtful = everywhere(engines, put_back)
    well = [e for e in engines if e.url not in doubtful]
    for e in well:
        try:
            found = e.checksum()
        except RunError as error:
            doubtful[e.url] = str(error)
            continue
        before = last.checksums.get(e.url, "")
        if before and found != before:
            doubtful[e.url] = f"{e.url} has another checksum than before"
    doubtful |= everywhere([e for e in engines if e.url not in doubtful], lambda e: _resume(e, last.version))
    held = [e.url for e in engines if e.url not in doubtful]
    good = f"{', '.join(held)}: weights of version {last.version} again, compared and in service" if held else ""
    bad = f"{', '.join(doubtful)}: weights unknown, paused; start it anew" if doubtful else ""
    return "; ".join(s for s in (good, bad) if s)


def _resume(engine: Control, version: int) -> None:
    engine.resume()
    found = engine.version()
    if found != version:
        engine.pause("abort")
        raise RunError(f"{engine.url} took version {version} but answers with weights of version {found}")


def _checksums(engines: Sequence[Control], failed: dict[str, str]) -> dict[str, str]:
    """An engine's URL -> checksum. Engines that differ from the first are added to `failed`."""
    found: dict[str, str] = {}
    failed |= everywhere(engines, lambda e: found.__setitem__(e.url, e.checksum()))
    known = {u: s for u, s in found.items() if s}
    if len(set(known.values())) > 1:
        failed |= {u: f"{u} holds weights with the checksum {s}; the engines differ" for u, s in known.items()}
    return found


def everywhere(engines: Sequence[Control], act: Callable[[Control], None]) -> dict[str, str]:
    """Run `act` on all engines at once; URL -> reason of those that failed."""
    failed: dict[str, str] = {}
    if not engines:
        return failed
    with ThreadPoolExecutor(max_workers=len(engines)) as pool:
        for engine, done in [(e, pool.submit(act, e)) for e in engines]:
            error = done.exception()
            if isinstance(error, RunError):
                failed[engine.url] = str(error)
            elif error is not None:
                raise error
    return failed
