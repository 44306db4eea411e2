"""The servers that a run talks to: those that its config names, or ones of its own that end with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.cluster.machines import Machines
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.run import preflight


@dataclass(slots=True)
class Services:
    """`version`: of the weights that the engines hold, for who gives them none."""

    engines: list[str]
    search: str | None
    check: Callable[[], None] = lambda: None  # raises RunError once one that we started has died
    machines: Machines | None = None  # where the ranks run; None: here
    version: int = 0


@contextmanager
def services(cfg: RunConfig, *, engine: bool = True, publishes: bool = False) -> Iterator[Services]:
    """The engine and the search server that the config names, or ones of our own until the block ends.

    `publishes`: the engines get weights of this run's; else they must hold those of `model.path`, under any version. Servers
    that the config names are asked first whether they answer, engines also what they serve. A run that searches nothing has no
    search server.
    Raises RunError if one does not become healthy, UsageError for an engine of another model.
    """
    preflight.search_answers(cfg)
    version = preflight.engines(cfg, publishes=publishes) if engine else 0
    from megatron_mmsr1.procs.service import Service
    from megatron_mmsr1.rollout import engines as kinds
    from megatron_mmsr1.rollout.engines.base import Launch
    from megatron_mmsr1.search.server import launch as search_launch

    logs = Path(cfg.output) / "logs"
    checks: list[Callable[[], None]] = []
    with ExitStack() as stack:
        search = cfg.search.url
        if search is None and cfg.searches:
            cache = Path(cfg.search.cache or Path(cfg.output) / "search-cache.sqlite")
            server = search_launch.launch(cfg.search, cache_path=cache, log=logs / "search.log")
            stack.callback(server.stop)
            checks.append(server.check)
            search = server.url
        engines = list(cfg.engine.urls)
        if engine and not engines:
            print(f"starting the engine (half a minute; log: {logs / 'engine.log'})", file=sys.stderr, flush=True)
            launch = Launch(
                model=Path(cfg.model.path),
                settings=cfg.engine,
                log=logs / "engine.log",
                seed=cfg.seed,
                trains_pictures=not cfg.model.vision_frozen,
                follow=Path(cfg.output) / "weights" if publishes else None,
            )
            started = Service(kinds.get(cfg.engine.name).command(launch)).start()
            # One that dies or hangs is replaced: its turns wait for it, and it serves the weights published last.
            started.watch(lambda line: print(line, file=sys.stderr, flush=True))
            stack.callback(started.stop)
            checks.append(started.check)
            engines = [started.url]

        def check() -> None:
            for one in checks:
                one()

        yield Services(engines, search, check, version=version)
