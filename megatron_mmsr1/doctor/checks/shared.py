"""Whether all nodes share the directory of the run, and how late one sees what another has written."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from megatron_mmsr1.data import files
from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who

WAIT_S = 60.0  # an NFS client may keep what it knows of a directory for so long
LATE_MS = 5000.0
POLL_S = 0.001


def run(place: Place, wait_s: float = WAIT_S) -> list[Finding]:
    """Every node looks for every other's file once before there is one, as whoever waits for a file does: what a client then
    remembers is part of the delay. The time is from the moment that all files are written."""
    tasks, where = place.tasks, place.directory
    firsts = tasks.firsts
    if len(firsts) == 1:
        return []
    token = tasks.gather("shared/token", secrets.token_hex(8), firsts)[0]
    paths = {r: where / f".mmsr1-doctor-{token}-{r}" for r in firsts}
    for path in paths.values():
        path.exists()
    tasks.gather("shared/looked", True, firsts)
    own = paths[tasks.rank]
    try:
        files.write_text(own, tasks.node)
        tasks.gather("shared/written", True, firsts)
        began = time.perf_counter()
        seen = {r: _seen(paths[r], began, wait_s) for r in firsts if r != tasks.rank}
        tasks.gather("shared/seen", True, firsts)
    finally:
        own.unlink(missing_ok=True)
    return [_finding(tasks.nodes, where, seen)]


def _seen(path: Path, began: float, wait_s: float) -> float | None:
    """Milliseconds since `began`; None if it never came."""
    while True:
        if os.path.exists(path):
            return (time.perf_counter() - began) * 1e3
        if time.perf_counter() - began > wait_s:
            return None
        time.sleep(POLL_S)


def _finding(nodes: list[str], where: Path, seen: dict[int, float | None]) -> Finding:
    data = {"ms": {nodes[r]: ms for r, ms in seen.items()}}
    missing = [nodes[r] for r, ms in seen.items() if ms is None]
    if missing:
        return Finding(
            "file of another node",
            f"{where} does not show the files of {', '.join(missing)}",
            Level.ERROR,
            "output must lie on a file system that all nodes share, under the same path",
            data=data,
        )
    worst = max(ms for ms in seen.values() if ms is not None)
    late = worst > LATE_MS
    advice = "the head sees late what ranks report: mount it with shorter attribute caching (NFS: actimeo)" if late else ""
    value = f"seen after at most {worst:.1f} ms in {where}"
    return Finding("file of another node", value, Level.WARNING if late else Level.OK, advice, data=data)


CHECK = Check("whether a file of one node is seen by the others, and when", Who.NODES, run)
