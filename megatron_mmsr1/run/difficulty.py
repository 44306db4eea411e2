"""How hard a run found its questions, as a column of its data: the share of each one's rollouts that failed."""

from __future__ import annotations

from pathlib import Path

from megatron_mmsr1 import config
from megatron_mmsr1.data import parquet
from megatron_mmsr1.data.rows import prompt_id
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.rollout.dump import SUFFIX, read_dump
from megatron_mmsr1.run.trainable import scored
from megatron_mmsr1.shaping.success import succeeded

COLUMN = "difficulty"


def failure_shares(rollouts: Path) -> dict[str, float]:
    """By prompt id, over all steps dumped there: 0 where every scored rollout was right, 1 where none was."""
    tries: dict[str, int] = {}
    failures: dict[str, int] = {}
    for step in sorted({int(f.name.removesuffix(SUFFIX)[5:11]) for f in rollouts.glob(f"step_*{SUFFIX}")}):
        for t in scored(read_dump(rollouts, step)[0]):
            tries[t.prompt_id] = tries.get(t.prompt_id, 0) + 1
            failures[t.prompt_id] = failures.get(t.prompt_id, 0) + (not succeeded(t))
    return {p: failures[p] / n for p, n in tries.items()}


def write_difficulties(run: Path, out: Path) -> list[str]:
    """Copies of the files of `data.train` of the run at `run` in the directory `out`, with the column COLUMN: each row's share
    of failures; a row that was never rolled out has the mean. Returns a line a file. UsageError for a run without rollouts, or
    if `out` is where the files are."""
    cfg = config.load(run / "config.yaml")
    shares = failure_shares(run / "rollouts")
    if not shares:
        raise UsageError(f"{run}/rollouts holds no scored rollouts of training steps to tell a difficulty from")
    mean = sum(shares.values()) / len(shares)
    said: list[str] = []
    for path in map(Path, cfg.data.train):
        target = out / path.name
        if target.resolve() == path.resolve():
            raise UsageError(f"{target} is the run's own data: name another directory")
        ids = _prompt_ids(path)
        parquet.write_with_column(path, target, COLUMN, [shares.get(i, mean) for i in ids])
        known = sum(i in shares for i in ids)
        said.append(f"wrote {target}: {known} of {len(ids)} rows were rolled out; the others have the mean, {mean:.3f}")
    return said


def _prompt_ids(path: Path) -> list[str]:
    columns, sizes = parquet.outline(path)
    if "data_id" not in columns:
        return [prompt_id(None, path, number) for number in range(sum(sizes))]
    groups = (parquet.row_group(path, g, ["data_id"]).to_pylist() for g in range(len(sizes)))
    return [prompt_id(row["data_id"], path, number) for number, row in enumerate(row for rows in groups for row in rows)]
