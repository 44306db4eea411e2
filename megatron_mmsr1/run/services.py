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
    engines: list[str]
    search: str | None
    check: Callable[[], None] = lambda: None  # raises RunError once one that we started has died
    machines: Machines | None = None  # where the ranks run; None: here


@contextmanager
def services(cfg: RunConfig, *, engine: bool = True) -> Iterator[Services]:
    """The engine and the search server that the config names, or ones of our own until the block ends.

    A run that searches nothing has no search server. Raises RunError if one does not become healthy.
    Servers that the config names are asked first whether they answer.
    """
    preflight.servers(cfg, engine=engine)
    from megatron_mmsr1.rollout import engines as kinds
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
            started = kinds.get(cfg.engine.name).launch(
                Path(cfg.model.path),
                cfg.engine,
                logs / "engine.log",
                seed=cfg.seed,
                trains_pictures=not cfg.model.vision_frozen,
                follow=Path(cfg.output) / "weights",
            )
            # One that dies or hangs is replaced: its turns wait for it, and it serves the weights published last.
            started.watch(lambda line: print(line, file=sys.stderr, flush=True))
            stack.callback(started.stop)
            checks.append(started.check)
            engines = [started.url]

        def check() -> None:
            for one in checks:
                one()

        yield Services(engines, search, check)
