"""Checkpoints that are written while training goes on, and disks that do not take them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from megatron_cases.harness import LAYOUTS, Lab, raises
from megatron_cases.persistence import NAMES, SCHEDULE
from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.data.images import ImageStore


def steps_go_on(lab: Lab, layout: str) -> None:
    """What is written is what was there at the call, bit by bit, whatever steps do meanwhile; twice, through one memory."""
    from megatron_mmsr1.megatron.saving import HostMemory

    settings = {"megatron": LAYOUTS[layout], "optimizer": {"lr": 0.05}}
    actor, memory = lab.actor(**settings), HostMemory()
    home = lab.root / f"meanwhile_{layout}"
    following: dict[int, dict[str, float]] = {}
    for step in (1, 2):
        actor.train_step(lab.trajectories, lab.advantages)
        actor.export(home / f"then_{step}")
        save = actor.begin_save(home / f"step_{step:06d}", {"step": step}, memory=memory)
        with torch.no_grad():  # at once, whatever the threads have come to
            kept = [p.clone() for p in actor.model.core.parameters()]
            for p in actor.model.core.parameters():
                p.add_(1.0)
            for p, was in zip(actor.model.core.parameters(), kept, strict=True):
                p.copy_(was)
        assert not (home / f"step_{step:06d}").exists(), "not there before it is finished"
        following[step] = actor.train_step(lab.trajectories, lab.advantages)
        written = save.finish()
        assert save.done() and manifest.latest(home) == written.directory
        held = manifest.verify(written.directory, contents=True)
        assert held.step == 2 * step - 1 and all(digest for _, digest in held.files.values())
        assert written.bytes == sum(f.stat().st_size for f in written.directory.iterdir() if f.name != manifest.MANIFEST)
    for step in (1, 2):
        again = lab.actor(**settings)
        assert again.load(home / f"step_{step:06d}") == {"step": step} and again.step == 2 * step - 1
        again.export(home / f"found_{step}")
        a, b = (load_file(home / f"{kind}_{step}" / "model.safetensors") for kind in ("then", "found"))
        assert all(torch.equal(a[n], b[n]) for n in a)
        found = again.train_step(lab.trajectories, lab.advantages)
        assert {n: found[n] for n in NAMES} == {n: following[step][n] for n in NAMES}


def replicas_share_the_writing(lab: Lab) -> None:
    """Under data parallelism each rank writes a part; together no tensor is there twice."""
    directory = lab.root / "shared" / "step_000001"
    lab.actor(megatron=LAYOUTS["dp2"]).save(directory, {})
    sizes = sorted(f.stat().st_size for f in directory.glob("*.distcp"))
    assert len(sizes) == 2 and sizes[1] < 1.5 * sizes[0], sizes


def full_disk(lab: Lab, layout: str) -> None:
    """A real full device under one rank's shard, under extra.pt, and no room from the start: every rank is told the same, the
    one before is as it was, nothing is left, and the next one is written."""
    from megatron_mmsr1.megatron import saving

    actor = lab.actor(megatron=LAYOUTS[layout])
    home = lab.root / f"full_{layout}"
    actor.save(home / "step_000001", {"step": 1})
    last = lab.world - 1

    def full(name: str) -> Any:
        return lambda part: (part / name).symlink_to("/dev/full") if lab.rank == 0 else None

    for beside, words in (
        (full(f"__{last}_0.distcp"), (f"rank {last}: ", "No space left on device", f"__{last}_0.distcp")),
        (full("__0_0.distcp"), ("rank 0: ", "No space left on device", "__0_0.distcp")),
        (full(".metadata.tmp"), ("rank 0: ", "No space left on device")),
        (_fails_on(last, lab), (f"rank {last}: ", "No space left on device", "carried")),
    ):
        with raises(saving.NotWritten, "step_000002 was not written", *words):
            actor.begin_save(home / "step_000002", {"step": 2}, beside, saving.HostMemory()).finish()
        actor.parallel.barrier()
        assert {f.name for f in home.iterdir()} == {"step_000001", "latest"}
        assert manifest.verify(manifest.latest(home) or home, contents=True).step == 0
    free = shutil.disk_usage
    shutil.disk_usage = lambda path: free(path)._replace(free=1000)  # type: ignore[assignment]
    try:
        with raises(saving.NotWritten, "rank 0: ", "No space left on device", "GB are needed"):
            actor.save(home / "step_000002", {"step": 2})
    finally:
        shutil.disk_usage = free
    actor.save(home / "step_000002", {"step": 2})
    assert lab.actor(megatron=LAYOUTS[layout]).load(home / "step_000002") == {"step": 2}


def other_failures(lab: Lab) -> None:
    """What is no fault of the disk is not taken for one, and reaches every rank too."""
    from megatron_mmsr1.errors import RunError
    from megatron_mmsr1.megatron.saving import NotWritten

    def beside(part: Path) -> None:
        if lab.rank == lab.world - 1:
            raise ValueError("a mistake")

    try:
        lab.actor().begin_save(lab.root / "mistaken" / "step_000001", {}, beside)
    except RunError as e:
        assert not isinstance(e, NotWritten) and "ValueError('a mistake')" in str(e)
    else:
        raise AssertionError("a mistake passed")


def complete_state(lab: Lab, layout: str) -> None:
    """Everything that a resume needs is in the checkpoint, and is there again in another life: each thing by its name."""
    from megatron_mmsr1.config.shaping import RefillConfig, ShapingConfig
    from megatron_mmsr1.data.sampler import ResumableSampler
    from megatron_mmsr1.run.kept import Kept
    from megatron_mmsr1.run.resume import Checkpoints
    from megatron_mmsr1.run.search_watch import SearchWatch

    train = {"save_interval": 1, "async_checkpoint": True}
    sections = {
        "megatron": LAYOUTS[layout],
        "optimizer": SCHEDULE,
        "train": train,
        "algorithm": {"kl_coef": 0.1, "kl_target": 0.1},
    }
    out = lab.root / f"complete_{layout}"
    cfg = lab.config(**sections).model_copy(
        update={"output": str(out), "shaping": ShapingConfig(refill=RefillConfig(rounds=2))}
    )
    for sha in sorted({i.sha256 for t in lab.trajectories for i in t.images}):
        ImageStore(out / "images").put(lab.store.get(sha))
    snapshot = {"mode": "recorded", "id": "0123abcd", "backends": ["bm25"]}

    class Watch(SearchWatch):
        def identity(self) -> dict[str, Any]:
            return snapshot

    def life() -> tuple[Any, ResumableSampler, Kept, Checkpoints]:
        actor, sampler = lab.actor(**sections), ResumableSampler(10, seed=3, shuffle=True)
        kept = Kept(cfg, actor.parallel, out / "images")
        return actor, sampler, kept, Checkpoints(cfg, actor, sampler, kept, print, print)

    actor, sampler, kept, checkpoints = life()
    assert checkpoints.restore() == 0
    actor.train_step(lab.trajectories, lab.advantages)
    sampler.take(13)
    held = lab.trajectories if actor.parallel.is_leader else []
    kept.keep(["g1"], held)
    kept.successes.held = list(held[:1])
    actor.guard.in_a_row = 2
    checkpoints.save(1, Watch(None, cfg, print, print))
    checkpoints.require(1)
    told = checkpoints.metrics()
    assert told["seconds/checkpoint"] > 0 and told["checkpoint_write_seconds"] > 0 and told["checkpoint_failures"] == 0
    assert checkpoints.metrics() == {"checkpoint_failures": 0.0}, "told once"
    drawn = (random.random(), float(np.random.rand()), torch.rand(2).tolist())
    weights = {n: w.clone() for n, w in actor.model.core.state_dict().items() if isinstance(w, torch.Tensor)}
    following = actor.train_step(lab.trajectories, lab.advantages)
    rows, coefficient = sampler.take(20), actor.kl_coef

    other, place, again, resumed = life()
    assert resumed.restore() == 1
    extra = torch.load(out / "checkpoints" / "step_000001" / "extra.pt", weights_only=True)["extra"]
    found = (random.random(), float(np.random.rand()), torch.rand(2).tolist())
    loaded = other.model.core.state_dict()
    assert all(torch.equal(w, loaded[n]) for n, w in weights.items()), "weights"
    step = other.train_step(lab.trajectories, lab.advantages)
    assert {n: step[n] for n in ("loss", "grad_norm", "kl")} == {n: following[n] for n in ("loss", "grad_norm", "kl")}, (
        "optimizer"
    )
    assert step["lr"] == following["lr"] > 0, "scheduler"
    assert found == drawn, "generators"
    assert place.take(20) == rows, "data cursor"
    assert extra["engine"]["version"] == 1, "engine version"
    assert extra["search"] == snapshot, "search snapshot"
    assert again.groups == ["g1"], "rollouts that are kept"
    if other.parallel.is_leader:
        assert [t.token_ids for t in again.carried] == [t.token_ids for t in kept.carried] != []
        assert [t.prompt_id for t in again.successes.held] == ["p0"]
    assert other.kl_coef == coefficient, "the KL's coefficient"
    actor = lab.actor(**sections)
    actor.load(out / "checkpoints" / "step_000001")
    assert actor.guard.in_a_row == 2, "skipped updates in a row"


def _fails_on(rank: int, lab: Lab) -> Any:
    def beside(part: Path) -> None:
        if lab.rank == rank:
            with open("/dev/full", "wb", buffering=0) as f:
                try:
                    f.write(b"x")
                except OSError as e:
                    raise OSError(e.errno, e.strerror, str(part / "carried")) from None

    return beside
