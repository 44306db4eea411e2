"""A rollout recorded against a backend that fails at times, and replayed with it gone: the same observations, to the id."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout.dump import read_dump
from megatron_mmsr1.trajectory import Trajectory
from tests.loop_fixtures import metrics, mmsr1, settings, small_world
from tests.upstream import Upstream

TRAJECTORIES = 200


def rollout(
    engine: Service, world: Path, out: Path, upstream: Upstream, store: Path, mode: str, *more: str
) -> tuple[list[Trajectory], dict[str, object]]:
    """One step of TRAJECTORIES trajectories; their searches go to `upstream` and into, or out of, `store`."""
    overrides = settings(world, out, "train.mode=rollout-only", "train.steps=1", f"engine.urls=[{engine.url}]")
    overrides += ["data.prompts_per_step=25", "data.group_size=8"]
    overrides += ["search.text.backend=retrieve", f"search.text.url={upstream.url}", "search.text.breaker_failures=1000"]
    overrides += [f"search.mode={mode}", f"search.cache={store}", "rollout.pause_above=1", *more]
    done = mmsr1("train", "configs/atlas.yaml", *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_dump(out / "rollouts", 0)


def observations(t: Trajectory) -> list[list[int]]:
    return [t.token_ids[turn.start : turn.end].tolist() for turn in t.turns if turn.role == "tool"]


def test_replay_gives_the_same_tokens(atlas_engine: Service, tmp_path: Path) -> None:
    world, store = small_world(tmp_path / "world"), tmp_path / "snapshot.sqlite"
    # A fifth of the queries fails there, and a fifth finds nothing: both must come back as they were.
    upstream = Upstream(world, tmp_path / "upstream.log", "error_rate=0.2", "missing_rate=0.2", "latency_s=0.02")
    with upstream:
        recorded, meta = rollout(atlas_engine, world, tmp_path / "record", upstream, store, "record")
    assert len(recorded) == TRAJECTORIES
    seen = [o for t in recorded for o in observations(t)]
    statuses = {c.status.value for t in recorded for c in t.tool_calls}
    assert len(seen) > 50 and {"ok", "empty", "upstream_error"} <= statuses

    before = store.read_bytes()
    # No backend to reach, no corpus to read: only the snapshot is left.
    replayed, again = rollout(atlas_engine, world, tmp_path / "replay", upstream, store, "replay-strict", "search.corpus=null")
    assert [t.token_ids for t in replayed] == [t.token_ids for t in recorded]
    assert [observations(t) for t in replayed] == [observations(t) for t in recorded]
    assert [[c.status for c in t.tool_calls] for t in replayed] == [[c.status for c in t.tool_calls] for t in recorded]
    assert [t.reward for t in replayed] == [t.reward for t in recorded]
    assert store.read_bytes() == before

    # The snapshot has a name, and both runs say it.
    one, two = meta["search"], again["search"]
    assert isinstance(one, dict) and isinstance(two, dict)
    assert (one["mode"], two["mode"]) == ("record", "replay-strict")
    assert len(one["id"]) == 16 and one["id"] == two["id"]
    kinds = {k for (k,) in sqlite3.connect(store).execute("SELECT DISTINCT kind FROM entries")}
    assert {"text", "search", "image", "outcome"} <= kinds
    assert metrics(tmp_path / "replay")[0].keys() >= {"search_server/entries"}


def test_what_was_not_recorded_is_a_failure_and_nobodys_fault(atlas_engine: Service, tmp_path: Path) -> None:
    """replay-strict of another seed: a query that the snapshot lacks is an infrastructure failure, never an empty result."""
    world, store = small_world(tmp_path / "world"), tmp_path / "snapshot.sqlite"
    small = ("data.prompts_per_step=4", "data.group_size=2")
    with Upstream(world, tmp_path / "upstream.log") as upstream:
        rollout(atlas_engine, world, tmp_path / "record", upstream, store, "record", *small)
    other, _ = rollout(atlas_engine, world, tmp_path / "other", upstream, store, "replay-strict", *small, "seed=7")
    missed = [c for t in other for c in t.tool_calls if c.status == "upstream_error"]
    assert missed and all("snapshot" in c.detail for c in missed)
    assert all(t.reward is None for t in other if any(c in missed for c in t.tool_calls))
