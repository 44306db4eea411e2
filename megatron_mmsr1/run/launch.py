"""What a verb starts: the search server, the engine and the ranks, as one family of processes that begins and ends together."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1 import config
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.affects import differing
from megatron_mmsr1.errors import REPORT, RunError, UsageError, left_by_child
from megatron_mmsr1.procs.progress import Follower, progress
from megatron_mmsr1.procs.supervisor import Supervisor, free_port, tail
from megatron_mmsr1.run import preflight

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
    check: Callable[[], None] = lambda: None  # raises RunError once one that we started has died


def train(cfg: RunConfig) -> Path:
    """`mmsr1 train`: services, then the ranks; returns the run's directory. Resumes what is there."""
    out = open_run(cfg, preflight.train)
    if cfg.train.mode == "rollout-only":
        from megatron_mmsr1.run.rollout_only import rollout_only

        with Supervisor(), services(cfg) as found:
            rollout_only(cfg, found.engines, found.search)
        return out
    with Supervisor() as supervisor:
        if cfg.train.mode == "train-only":
            _ranks(cfg, out, supervisor, Services([], None))
        else:
            with services(cfg) as found:
                _ranks(cfg, out, supervisor, found)
    return out


def sft(cfg: RunConfig) -> Path:
    """`mmsr1 sft`: the ranks alone."""
    out = open_run(cfg, preflight.sft)
    with Supervisor() as supervisor:
        _ranks(cfg, out, supervisor, Services([], None))
    return out


def open_run(cfg: RunConfig, check: Callable[[RunConfig], None]) -> Path:
    """Make the run's directory and keep the whole config in it, once `check` has let the config pass.

    UsageError for a directory that holds the work of another configuration, or that cannot be written.
    """
    out = Path(cfg.output)
    kept = out / "config.yaml"
    text = config.dump(cfg)
    changed = differing(config.load(kept), cfg) if kept.is_file() and _has_work(out) else []
    if changed:
        shown = ", ".join(changed[:6]) + (" …" if len(changed) > 6 else "")
        raise UsageError(f"{out} holds a run of another configuration; differing: {shown}. Name another output=")
    check(cfg)
    try:
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(text)
    except OSError as e:
        raise UsageError(f"output={out} cannot be written ({e.strerror}): name another output=") from None
    return out


def _has_work(out: Path) -> bool:
    """Whether anything there depends on the configuration: a run that failed at its start may begin again, corrected."""
    written = out / "metrics.jsonl"
    work = ("checkpoints", "rollouts", "eval", "model", "weights")
    return any((out / n).exists() for n in work) or (written.is_file() and written.stat().st_size > 0)


@contextmanager
def services(cfg: RunConfig, *, engine: bool = True) -> Iterator[Services]:
    """The engine and the search server that the config names, or ones of our own until the block ends.

    Raises RunError if one does not become healthy.
    Servers that the config names are asked first whether they answer.
    """
    preflight.servers(cfg, engine=engine)
    from megatron_mmsr1.rollout import sglang_server
    from megatron_mmsr1.search import launch as search_launch

    logs = Path(cfg.output) / "logs"
    checks: list[Callable[[], None]] = []
    with ExitStack() as stack:
        search = cfg.search.url
        if search is None:
            cache = Path(cfg.search.cache or Path(cfg.output) / "search-cache.sqlite")
            server = search_launch.launch(cfg.search, cache_path=cache, log=logs / "search.log")
            stack.callback(server.stop)
            checks.append(server.check)
            search = server.url
        engines = list(cfg.engine.urls)
        if engine and not engines:
            print(f"starting the engine (half a minute; log: {logs / 'engine.log'})", file=sys.stderr, flush=True)
            started = sglang_server.launch(cfg.model.path, cfg.engine, logs / "engine.log", seed=cfg.seed)
            stack.callback(started.stop)
            checks.append(started.check)
            engines = [started.url]

        def check() -> None:
            for one in checks:
                one()

        yield Services(engines, search, check)


def _ranks(cfg: RunConfig, out: Path, supervisor: Supervisor, found: Services) -> None:
    """torchrun on this machine. On a cluster srun starts `python -m megatron_mmsr1.train` itself."""
    threads = cfg.train.threads_per_rank or max(1, (os.cpu_count() or 1) // cfg.train.ranks)
    argv = [*_torchrun(cfg), str(out / "config.yaml")]
    argv += [arg for url in found.engines for arg in ("--engine", url)]
    argv += ["--search", found.search] if found.search else []
    title = "Cold start" if cfg.algorithm.name == "sft" else "GRPO"
    done = checkpointed_step(out)
    notes = Tail(out / "run.log")
    with progress(title, cfg.train.steps, done=done) as shown:
        steps = Follower(out / "metrics.jsonl", shown, SHOWN)

        def poll() -> None:
            notes.poll()
            steps.poll()
            found.check()

        _to_their_end(supervisor, argv, out / "logs" / "ranks.log", threads=threads, poll=poll)


def _to_their_end(
    supervisor: Supervisor, argv: list[str], log: Path, *, threads: int = 1, poll: Callable[[], None] | None = None
) -> None:
    """Start ranks and wait for them. What the first of them to fail reported is raised here, as its own kind of error."""
    report = log.with_name("failure.json")
    report.unlink(missing_ok=True)
    env = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", REPORT: str(report.resolve())}
    child = supervisor.start("ranks", argv, log=log, env=env)
    try:
        supervisor.wait("ranks", poll=poll)
    except RunError:
        if child.process.poll() is None:
            raise  # not the ranks: a server ended
        said = left_by_child(report)
        if said is None:
            raise RunError(
                f"the ranks ended with exit code {child.process.returncode} and none said why; one that was killed (for memory "
                f"perhaps) cannot. The same command resumes. The log {log} ends:\n{tail(log, 6)}"
            ) from None
        raise type(said)(f"{said} (the ranks' log: {log})") from None


def checkpointed_step(out: Path) -> int:
    """The step that a run in `out` would resume at; 0 without a checkpoint."""
    from megatron_mmsr1.megatron.manifest import latest

    found = latest(out / "checkpoints")
    return int(found.name.rpartition("_")[2]) if found else 0


def evaluate(cfg: RunConfig, policies: bool) -> Path:
    """`mmsr1 eval`: the held-out questions through the model of the config, or through the scripted policies; saved beside
    the run's other evaluations and printed as a table with them.
    """
    from megatron_mmsr1.eval.evaluate import evaluate_model, evaluate_policies

    preflight.evaluate(cfg, engine=not policies)
    out = Path(cfg.output)
    out.mkdir(parents=True, exist_ok=True)
    with Supervisor(), services(cfg, engine=not policies) as found:
        if policies:
            evaluate_policies(cfg, found.search)
        else:
            evaluate_model(cfg, found.engines, found.search)
    import rich

    from megatron_mmsr1.eval.results import load_all, table

    rich.print(table(load_all(out / "eval")))
    return out / "eval"


def export(source: Path, target: Path) -> None:
    """`mmsr1 export`: a run's trained model, or its latest checkpoint if it has not finished, as a Hugging Face checkpoint with
    its page (README.md) and serving.yaml.
    """
    if target.exists():
        raise UsageError(f"{target} exists: name a directory that does not")
    done = checkpointed_step(source)
    if (source / "model" / "config.json").is_file():
        shutil.copytree(source / "model", target)
    elif done == 0:
        raise UsageError(f"{source} is no run with a trained model or a checkpoint (looked for model/ and checkpoints/latest)")
    else:
        with Supervisor() as supervisor:
            argv = [*_torchrun(config.load(source / "config.yaml")), str(source / "config.yaml"), "--export", str(target)]
            _to_their_end(supervisor, argv, source / "logs" / "export.log")
    if not (source / "config.yaml").is_file():
        print(f"{source} has no config.yaml: the model goes without its page and without serving.yaml", file=sys.stderr)
        return
    from megatron_mmsr1.publish import model_card

    model_card.write(source, target, step=done or config.load(source / "config.yaml").train.steps)


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
