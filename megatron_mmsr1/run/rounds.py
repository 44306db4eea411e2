"""The rounds of a step's rollouts in its dump: how many prompts each drew, and the trajectories of those that are whole.

A leader writes its file anew after each round, so that a kill between two leaders leaves files of different numbers of rounds.
"""

from __future__ import annotations

from pathlib import Path

from megatron_mmsr1.rollout.dump import dump_files, read_file, read_meta, required_files
from megatron_mmsr1.trajectory import Trajectory

ROUNDS = "rounds"  # of a dump's meta: [prompts of the first round, of the second, ...], over all leaders


def rounds_found(directory: Path, step: int, prompts: int) -> list[int]:
    """Those that every leader has written. A dump without a word of them has one, of `prompts`."""
    found = [read_meta(f).get(ROUNDS, [prompts]) for f in dump_files(directory, step)]
    return min(found, key=len, default=[prompts])


def read_rounds(directory: Path, step: int, rounds: list[int], part: int, parts: int) -> list[Trajectory]:
    """What leader `part` of `parts` has to do with these rounds: its own file's, or its share of what other leaders wrote.
    Raises RunError as `read_dump` does."""
    files = required_files(directory, step)
    if len(files) == parts:
        return _first(files[part], rounds)
    every = [t for f in files for t in _first(f, rounds)]
    return every[part * len(every) // parts : (part + 1) * len(every) // parts]


def _first(file: Path, rounds: list[int]) -> list[Trajectory]:
    trajectories, meta = read_file(file)
    own = meta.get(ROUNDS, rounds)
    if len(own) <= len(rounds):
        return trajectories
    return trajectories[: len(trajectories) * sum(rounds) // sum(own)]
