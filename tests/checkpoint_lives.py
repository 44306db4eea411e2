"""checkpoint_lives.py ROOT WHAT N SEED: lives of a small supervised run on two tensor-parallel ranks, upset while they save.

To import megatron takes each process longer than a whole life, so that ranks are forked from this one, which has. ROOT gets
`whole`, a run that nobody disturbed, the run that was upset, and found.json: what was seen after each upset.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = 8
Upset = Callable[[Any], None]  # is called with the run on every rank, before its first step


def main(root: Path, what: str, n: int, seed: int) -> None:
    from megatron_cases import tiny
    from megatron_cases.worker import preload

    preload()
    import megatron_mmsr1.run.run  # noqa: F401
    from megatron_mmsr1.data.images import ImageStore

    tiny.make_checkpoint(root / "tiny")
    talks = tiny.conversations(ImageStore(root / "images"))
    (root / "talks.jsonl").write_text("".join(json.dumps(t.to_dict()) + "\n" for t in talks))
    assert live(configured(root, "whole"), root) == [0, 0], (root / "ranks.log").read_text()[-3000:]
    found = {"kill": kills, "full": fills, "stop": stops, "slow": slow}[what](root, n, random.Random(seed))
    (root / "found.json").write_text(json.dumps(found))


def configured(root: Path, name: str, **train: Any) -> Path:
    """The file of a run in root/NAME."""
    from megatron_mmsr1 import config

    out = root / name
    shutil.copytree(root / "images", out / "images", dirs_exist_ok=True)
    cfg = config.parse(
        {
            "output": str(out),
            "model": {"path": str(root / "tiny"), "dtype": "float32"},
            "protocol": {"max_prompt_tokens": 1, "max_turn_tokens": 1},
            "algorithm": {"name": "sft"},
            "optimizer": {"lr": 1e-3, "schedule": "cosine"},
            "megatron": {"tensor_parallel": 2, "tokens_per_microbatch": 100},
            "train": {"ranks": 2, "steps": STEPS, "save_interval": 1, "keep_checkpoints": 1} | train,
            "sft": {"source": str(root / "talks.jsonl"), "examples_per_step": 2},
            "logging": {"tensorboard": False},
        }
    )
    (out / "config.yaml").write_text(config.dump(cfg))
    return out / "config.yaml"


def live(file: Path, root: Path, upset: Upset | None = None, killer: Callable[[], bool] | None = None) -> list[int | None]:
    """A life of the run, to its end or until `killer`, asked again and again, says that it ends now; the exit codes."""
    from megatron_mmsr1.procs.ports import free_port

    context, port = multiprocessing.get_context("fork"), free_port()
    ranks = [context.Process(target=serve, args=(file, rank, port, root / "ranks.log", upset)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    while any(rank.exitcode is None for rank in ranks):
        if (killer is not None and killer()) or any(rank.exitcode for rank in ranks):
            for rank in ranks:
                rank.kill()
            break
        time.sleep(0.0005)
    for rank in ranks:
        rank.join()
    return [rank.exitcode for rank in ranks]


def serve(file: Path, rank: int, port: int, log: Path, upset: Upset | None) -> None:
    from megatron_mmsr1.errors import exit_with_message

    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {k: str(v) for k, v in places.items()}
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)

    def run() -> None:
        from megatron_mmsr1 import config
        from megatron_mmsr1.run.run import Run
        from megatron_mmsr1.train import cold_start

        with Run(config.load(file), [], None) as run:
            if upset is not None:
                upset(run)
            cold_start(run)

    exit_with_message(run)


def seen(out: Path) -> dict[str, Any]:
    """The checkpoint to resume from, once all of it was read and compared, and what the run has said so far."""
    from megatron_mmsr1.checkpoints import manifest

    home = out / "checkpoints"
    latest = manifest.latest(home) if home.is_dir() else None
    held = manifest.verify(latest, contents=True) if latest else None
    rows = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").is_file() else []
    left = sorted(f.name for f in home.glob(".*")) if home.is_dir() else []
    return {"latest": latest.name if latest else None, "step": held.step if held else 0, "rows": len(rows), "left": left}


# ------------------------------------------------------------------------------------------------------------------ upsets
STAGES = ("", "__0_0.distcp", "__1_0.distcp", "extra.pt", ".metadata", "metadata.json", "manifest.json", "renamed", "latest")


def kills(root: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """SIGKILL to both ranks, `n` times, each when a checkpoint has come to some stage or a little later. A run that is killed
    goes on in the same directory; one that comes to its end is kept, and another begins."""
    found: list[dict[str, Any]] = []
    runs = 0
    while sum(f["killed"] for f in found) < n or found[-1]["codes"] != [0, 0]:
        if not found or found[-1]["codes"] == [0, 0]:
            runs += 1
        out = root / f"upset_{runs}"
        file = configured(root, out.name)
        step, stage = seen(out)["step"] + rng.randint(1, 3), rng.choice(STAGES)
        killer = (
            killed_at(out / "checkpoints", step, stage, rng.random() * 0.01) if sum(f["killed"] for f in found) < n else None
        )
        codes = live(file, root, killer=killer)
        killed = codes == [-signal.SIGKILL] * 2
        found.append({"run": out.name, "codes": codes, "killed": killed, "at": [step, stage], **seen(out)})
        assert killed or codes == [0, 0], (root / "ranks.log").read_text()[-3000:]
    return found


def killed_at(home: Path, step: int, stage: str, later_s: float) -> Callable[[], bool]:
    part, whole, latest = home / f".step_{step:06d}.part" / stage, home / f"step_{step:06d}", home / "latest"

    def reached() -> bool:
        if stage == "renamed":
            there = whole.exists()
        elif stage == "latest":
            there = latest.exists() and latest.read_text().strip() >= whole.name
        else:
            there = part.exists() or whole.exists()
        if there:
            time.sleep(later_s)
        return there

    return reached


def fills(root: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """On a file system of its own, which somebody fills to a random level before the checkpoints of the first `n` odd
    steps, and empties when each was refused. What there was to resume from after each refusal, and at the end."""
    steps = max(STEPS, 2 * n)
    out, whole = root / "upset_1", configured(root, "longer", steps=steps)
    assert live(whole, root) == [0, 0], (root / "ranks.log").read_text()[-3000:]
    size = size_of(root / "longer" / "checkpoints" / f"step_{steps:06d}")
    file = configured(root, out.name, checkpoint_failures=1, steps=steps)
    mount(out / "checkpoints", 8 * size)
    ballast, after, levels = (
        out / "checkpoints" / "ballast",
        list[dict[str, Any]](),
        [(i + rng.random()) / n * 0.97 * size for i in range(n)],
    )

    def upset(run: Any) -> None:
        save = run.save_if_due

        def save_if_due(step: int) -> None:
            if step % 2 and step < 2 * n:
                run.checkpoints.settle(wait=True)  # which gives the room of an older one back
                if run.lead:
                    fill(ballast, levels[step // 2])
            if step % 2 == 0 and step <= 2 * n:
                run.checkpoints.settle(wait=True)  # what is refused is refused before there is room again
                if run.lead:
                    after.append(seen(out))
                    ballast.unlink()
            save(step)
            if step == steps and run.lead:
                (root / "after.json").write_text(json.dumps(after))

        run.save_if_due = save_if_due

    codes = live(file, root, upset)
    assert codes == [0, 0], (root / "ranks.log").read_text()[-3000:]
    return [*json.loads((root / "after.json").read_text()), {"codes": codes, **seen(out)}]


def stops(root: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """A disk that is full from the third step on: the run ends after `n` refusals and one more, and goes on with room."""
    out = root / "upset_1"
    size = size_of(root / "whole" / "checkpoints" / f"step_{STEPS:06d}")
    file = configured(root, out.name, checkpoint_failures=n)
    mount(out / "checkpoints", 8 * size)
    ballast = out / "checkpoints" / "ballast"

    def upset(run: Any) -> None:
        save = run.save_if_due

        def save_if_due(step: int) -> None:
            if step == 3:
                run.checkpoints.settle(wait=True)
                if run.lead:
                    fill(ballast, 0.5 * size)
            save(step)

        run.save_if_due = save_if_due

    first = {"codes": live(file, root, upset), **seen(out)}
    ballast.unlink()
    return [first, {"codes": live(file, root), **seen(out)}]


def slow(root: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """A disk that flushes no shard before somebody waits for it."""
    file = configured(root, "upset_1")

    def upset(run: Any) -> None:
        from megatron_mmsr1.megatron import saving

        flush, settle, wanted = os.fsync, run.checkpoints.settle, threading.Semaphore(0)

        def late(handle: int) -> None:
            if threading.current_thread().name == "checkpoint":
                wanted.acquire()
            flush(handle)

        def waits(*, wait: bool = False) -> None:
            if wait and run.checkpoints._saving is not None:
                wanted.release()
            settle(wait=wait)

        saving.os = type("os", (), {"fsync": staticmethod(late)})  # type: ignore[assignment]
        run.checkpoints.settle = waits

    return [{"codes": live(file, root, upset), **seen(root / "upset_1")}]


def size_of(checkpoint: Path) -> int:
    return sum(f.stat().st_size for f in checkpoint.iterdir())


def mount(at: Path, size: int) -> None:
    import subprocess

    at.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], check=True)


def fill(ballast: Path, free: float) -> None:
    """A file that leaves so many bytes free."""
    more = int(shutil.disk_usage(ballast.parent).free - free)
    with ballast.open("ab") as f:
        f.write(bytes(max(0, more)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
