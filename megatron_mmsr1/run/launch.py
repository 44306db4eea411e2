"""The verbs train, sft and eval: services and ranks, as one family of processes that begins and ends together."""

from __future__ import annotations

from pathlib import Path

from megatron_mmsr1.cluster.machines import machines
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import Interrupted, RunError
from megatron_mmsr1.procs.growing import NewLines
from megatron_mmsr1.procs.progress import Follower, progress, say
from megatron_mmsr1.procs.signals import exit_on_signals, on_usr1
from megatron_mmsr1.run import preflight
from megatron_mmsr1.run.directory import checkpointed_step, open_run
from megatron_mmsr1.run.evaluations import rename_earlier_after
from megatron_mmsr1.run.finished import nothing_left
from megatron_mmsr1.run.lives import Lives
from megatron_mmsr1.run.lock import TOKEN, RunLock
from megatron_mmsr1.run.phases import clear
from megatron_mmsr1.run.services import Services, services
from megatron_mmsr1.run.stop import Stop
from megatron_mmsr1.run.torchrun import RanksDied, run_ranks
from megatron_mmsr1.run.watchdog import Watchdog

# What the progress shows of a step: its short name and the metric.
SHOWN = {
    "loss": "loss",
    "reward": "reward/mean",
    "searches": "search/share",
    "entropy": "entropy",
    "gap": "logprob_diff_mean",
}


def train(cfg: RunConfig) -> Path:
    """`mmsr1 train`: services, then the ranks; returns the run's directory. Resumes what is there."""
    with open_run(cfg, preflight.train, "mmsr1 train") as lock, exit_on_signals():
        out = Path(cfg.output)
        rename_earlier_after(out, cfg.train.steps)
        if nothing_left(cfg):
            _say_end(cfg, "nothing is left to do")
            return out
        if cfg.train.mode == "train-only":
            return _without_services(cfg, out, lock)
        with machines(cfg, say) as where, services(cfg, where, publishes=cfg.train.mode == "full") as found:
            if cfg.train.mode == "rollout-only":
                from megatron_mmsr1.run.rollout_only import rollout_only

                rollout_only(cfg, found.engines, found.search, found.version)
            else:
                _ranks(cfg, out, found, lock)
    return out


def sft(cfg: RunConfig) -> Path:
    """`mmsr1 sft`: the ranks alone."""
    out = Path(cfg.output)
    with open_run(cfg, preflight.sft, "mmsr1 sft") as lock, exit_on_signals():
        if nothing_left(cfg):
            _say_end(cfg, "nothing is left to do")
        else:
            _without_services(cfg, out, lock)
    return out


def _without_services(cfg: RunConfig, out: Path, lock: RunLock) -> Path:
    with machines(cfg, say) as where:
        _ranks(cfg, out, Services([], None, machines=where, check=where.check), lock)
    return out


def _ranks(cfg: RunConfig, out: Path, found: Services, lock: RunLock) -> None:
    """The loop on its ranks; started again where they died and `placement.restarts` allows it."""
    lives = Lives(out, cfg.placement.restarts)
    while True:
        try:
            _one_life(cfg, out, found, lock)
            break
        except Interrupted as e:
            lives.died(e)
            if not isinstance(e, RanksDied) or not lives.again():
                raise
            say(f"{e}\nthe ranks are started again ({lives.left} restarts left)")
    _say_end(cfg, "done")


def _one_life(cfg: RunConfig, out: Path, found: Services, lock: RunLock) -> None:
    """With what the ranks do shown meanwhile."""
    args = [str(out / "config.yaml"), *(arg for url in found.engines for arg in ("--engine", url))]
    args += ["--search", found.search] if found.search else []
    title = "Cold start" if cfg.algorithm.supervised else "GRPO"
    notes = NewLines(out / "run.log")
    with progress(title, cfg.train.steps, done=checkpointed_step(out)) as shown:
        shown.waits_for("the ranks start and load the model")
        steps = Follower(out / "metrics.jsonl", shown, SHOWN)

        def poll() -> None:
            for line in notes.read():
                say(line.decode("utf-8", "replace")[20:])  # without the date: the terminal has its own time
            steps.poll()
            found.check()
            lock.check()

        stop = Stop(out)
        stop.withdraw()
        clear(out)
        try:
            log, env = out / "logs" / "ranks.log", {TOKEN: lock.holder.token, **found.env}
            watch = Watchdog(out, cfg.placement.hung_after_s)
            with on_usr1(stop.ask_and_go_on):
                run_ranks(
                    cfg,
                    "megatron_mmsr1.train",
                    args,
                    log,
                    machines=found.machines,
                    env=env,
                    poll=poll,
                    watch=watch,
                    on_interrupt=stop.ask,
                )
        except KeyboardInterrupt:
            stop.say_what_is_lost()
            raise
        except RunError as e:
            if stop.goes_on:
                raise Interrupted(str(e)) from None
            if not stop.asked:
                raise
            say(str(e))
            raise KeyboardInterrupt from None


def _say_end(cfg: RunConfig, how: str) -> None:
    """Where the result is, and what a person may want of it next."""
    out, model = Path(cfg.output), Path(cfg.output) / "model"
    steps = checkpointed_step(out)
    lines = [f"{how}: {steps} of {cfg.train.steps} steps. The trained model: {model}"]
    if not cfg.algorithm.supervised:
        lines.append(f"  mmsr1 report {out}       what happened, as one page")
        lines.append(f"  mmsr1 serve {model}      ask it questions")
    else:
        lines.append(f"  mmsr1 train CONFIG model.path={model}      train it by GRPO")
    lines.append(f"  train.steps={2 * cfg.train.steps} with the same command trains on")
    say("\n".join(lines))


def evaluate(cfg: RunConfig, policies: bool) -> Path:
    """`mmsr1 eval`: the held-out questions through the model of the config, or through the scripted policies; saved beside
    the run's other evaluations and printed as a table with them.
    """
    from megatron_mmsr1.eval.evaluate import evaluate_model, evaluate_policies, heldout

    preflight.evaluate(cfg, engine=not policies)
    if policies:
        from megatron_mmsr1.atlas.policies import require_atlas

        require_atlas(heldout(cfg))
    out = Path(cfg.output)
    out.mkdir(parents=True, exist_ok=True)
    with (
        exit_on_signals(),
        machines(cfg, say, trains=False) as where,
        services(cfg, where, engine=not policies) as found,
    ):
        if policies:
            evaluate_policies(cfg, found.search, say)
        else:
            evaluate_model(cfg, found.engines, found.search, found.version, say)
    import rich

    from megatron_mmsr1.eval.results import load_all, table

    rich.print(table(load_all(out / "eval")))
    say(f"written to {out / 'eval' / ('policies.json' if policies else 'model.json')}")
    return out / "eval"
