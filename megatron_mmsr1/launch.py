"""What a verb starts: the search server, the engine and the ranks, as one family of processes that begins and ends together."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.processes import Supervisor, free_port
from megatron_mmsr1.progress import Follower, progress

# What the progress shows of a step: its short name and the metric.
SHOWN = {
    "loss": "loss",
    "reward": "reward/mean",
    "searches": "search/share",
    "entropy": "entropy",
    "gap": "logprob_diff_mean",
}


@dataclass(slots=True)
class Services:
    engines: list[str]
    search: str | None


def train(cfg: RunConfig, config_path: str | None = None) -> Path:
    """`mmsr1 train`: services, then the ranks; returns the run's directory. Resumes what is there."""
    out = open_run(cfg)
    if cfg.train.mode == "rollout-only":
        from megatron_mmsr1.rollout_only import rollout_only

        with Supervisor() as supervisor, services(cfg, supervisor) as found:
            rollout_only(cfg, found.engines, found.search)
        return out
    with Supervisor() as supervisor:
        if cfg.train.mode == "train-only":
            _ranks(cfg, out, supervisor, Services([], None))
        else:
            with services(cfg, supervisor) as found:
                _ranks(cfg, out, supervisor, found)
    return out


def sft(cfg: RunConfig) -> Path:
    """`mmsr1 sft`: the ranks alone."""
    if cfg.algorithm.name != "sft":
        raise UsageError("mmsr1 sft wants algorithm.name: sft in its config")
    out = open_run(cfg)
    with Supervisor() as supervisor:
        _ranks(cfg, out, supervisor, Services([], None))
    return out


def open_run(cfg: RunConfig) -> Path:
    """Make the run's directory and keep the whole config in it. A directory of another configuration is refused."""
    out = Path(cfg.output)
    kept = out / "config.yaml"
    text = config.dump(cfg)
    if kept.is_file() and kept.read_text() != text:
        raise UsageError(
            f"{out} holds a run of another configuration; differing: {_differing(kept, cfg)}. Name another output="
        )
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)
    return out


@contextmanager
def services(cfg: RunConfig, supervisor: Supervisor, *, engine: bool = True) -> Iterator[Services]:
    """The engine and the search server that the config names, or ones of our own until the block ends.

    The two start side by side: loading an engine takes longest. Raises RunError if one does not become healthy.
    """
    from megatron_mmsr1.rollout import sglang_server
    from megatron_mmsr1.search import launch as search_launch

    logs = Path(cfg.output) / "logs"
    with ExitStack() as stack:
        search = cfg.search.url
        if search is None:
            cache = Path(cfg.search.cache or Path(cfg.output) / "search-cache.sqlite")
            server = search_launch.launch(cfg.search, cache_path=cache, log=logs / "search.log")
            stack.callback(server.stop)
            search = server.url
        engines = list(cfg.engine.urls)
        if engine and not engines:
            started = sglang_server.launch(cfg.model.path, cfg.engine, logs / "engine.log", seed=cfg.seed)
            stack.callback(started.stop)
            engines = [started.url]
        yield Services(engines, search)


def _ranks(cfg: RunConfig, out: Path, supervisor: Supervisor, found: Services) -> None:
    """torchrun on this machine. On a cluster srun starts `python -m megatron_mmsr1.train` itself."""
    threads = cfg.train.threads_per_rank or max(1, (os.cpu_count() or 1) // cfg.train.ranks)
    argv = [*_torchrun(cfg), str(out / "config.yaml")]
    argv += [arg for url in found.engines for arg in ("--engine", url)]
    argv += ["--search", found.search] if found.search else []
    supervisor.start(
        "ranks", argv, log=out / "logs" / "ranks.log", env={"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    )
    title = "Cold start" if cfg.algorithm.name == "sft" else "GRPO"
    done = checkpointed_step(out)
    notes = Tail(out / "run.log")
    with progress(title, cfg.train.steps, done=done) as shown:
        steps = Follower(out / "metrics.jsonl", shown, SHOWN)

        def poll() -> None:
            notes.poll()
            steps.poll()

        supervisor.wait("ranks", poll=poll)


def checkpointed_step(out: Path) -> int:
    """The step that a run in `out` would resume at; 0 without a checkpoint."""
    latest = out / "checkpoints" / "latest"
    return int(latest.read_text().strip().rpartition("_")[2]) if latest.is_file() else 0


def evaluate(cfg: RunConfig, policies: bool) -> Path:
    """`mmsr1 eval`: the held-out questions through the model of the config, or through the scripted policies; saved beside
    the run's other evaluations and printed as a table with them.
    """
    from megatron_mmsr1.evaluation import evaluate_model, evaluate_policies

    out = Path(cfg.output)
    out.mkdir(parents=True, exist_ok=True)
    with Supervisor() as supervisor, services(cfg, supervisor, engine=not policies) as found:
        if policies:
            evaluate_policies(cfg, found.search)
        else:
            evaluate_model(cfg, found.engines, found.search)
    import rich

    from megatron_mmsr1.evaluate import load_all, table

    rich.print(table(load_all(out / "eval")))
    return out / "eval"


def export(source: Path, target: Path) -> None:
    """`mmsr1 export`: a run's trained model, or its latest checkpoint if it has not finished, as a Hugging Face checkpoint."""
    if target.exists():
        raise UsageError(f"{target} exists: name a directory that does not")
    if (source / "model" / "config.json").is_file():
        shutil.copytree(source / "model", target)
        return
    if checkpointed_step(source) == 0:
        raise UsageError(f"{source} is no run with a trained model or a checkpoint (looked for model/ and checkpoints/latest)")
    cfg = config.load(source / "config.yaml")
    with Supervisor() as supervisor:
        argv = [*_torchrun(cfg), str(source / "config.yaml"), "--export", str(target)]
        supervisor.start("ranks", argv, log=source / "logs" / "export.log")
        supervisor.wait("ranks")


def _torchrun(cfg: RunConfig) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(cfg.train.ranks)]
    return [*run, "--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", "megatron_mmsr1.train"]


class Tail:
    """Shows the lines that the ranks add to the run's log, beside the progress."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = path.stat().st_size if path.exists() else 0

    def poll(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as f:
            f.seek(self.at)
            new = f.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.at += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            print(line[20:], file=sys.stderr, flush=True)  # without the date: the terminal has its own time


def _differing(kept: Path, cfg: RunConfig) -> str:
    old, new = _flat(config.load(kept).model_dump(mode="json")), _flat(cfg.model_dump(mode="json"))
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return ", ".join(keys[:6]) + (" …" if len(keys) > 6 else "")


def _flat(d: dict[str, object], prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for k, v in d.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v}
    return out
