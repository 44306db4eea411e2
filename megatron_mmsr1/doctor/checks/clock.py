"""The clocks of a job's nodes against that of its first."""

from __future__ import annotations

import time

from megatron_mmsr1.doctor.check import Check, Finding, Level, Place, Who

ROUNDS = 50
SKEW_S = 1.0


def run(place: Place) -> list[Finding]:
    """Cristian's method: the first node's clock, read at some moment of a round trip, is compared with the middle of it. It is
    wrong by half of the round trip at most; the shortest of `ROUNDS` counts."""
    tasks = place.tasks
    first, *others = tasks.firsts
    if not others:
        return []
    if tasks.rank == first:
        for r in others:
            for i in range(ROUNDS):
                tasks.store.get(f"clock/{r}/{i}/ask")
                tasks.store.set(f"clock/{r}/{i}/time", str(time.time_ns()))
        return []
    trips: list[tuple[int, int, int]] = []
    for i in range(ROUNDS):
        began = time.time_ns()
        tasks.store.set(f"clock/{tasks.rank}/{i}/ask", "")
        theirs = int(tasks.store.get(f"clock/{tasks.rank}/{i}/time"))
        trips.append((began, theirs, time.time_ns()))
    began, theirs, ended = min(trips, key=lambda t: abs(t[2] - t[0]))
    return [_finding((began - theirs + ended - theirs) / 2e9, (ended - began) / 2e9, tasks.nodes[first])]


def _finding(offset_s: float, error_s: float, first: str) -> Finding:
    """`offset_s`: this node's clock minus the first's, wrong by `error_s` at most."""
    skewed = abs(offset_s) - error_s > SKEW_S
    return Finding(
        "clock",
        f"{offset_s * 1e3:+.3f} ms against {first}, wrong by at most {error_s * 1e3:.3f} ms",
        Level.WARNING if skewed else Level.OK,
        "set the clocks (chrony, NTP): logs of nodes cannot be compared, and signed uploads are refused" if skewed else "",
        data={"offset_s": offset_s, "error_s": error_s},
    )


CHECK = Check("the clocks of the nodes against the first one's", Who.NODES, run)
