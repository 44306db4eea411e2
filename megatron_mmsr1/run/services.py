"""The servers that a run talks to: those that its config names, or ones of its own that end with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from megatron_mmsr1.cluster.machines import Machines
from megatron_mmsr1.cluster.placement import ENGINES, JUDGE, SEARCH, SUMMARISER, models
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.config.placement import JUDGE_URL
from megatron_mmsr1.errors import Interrupted, RunError
from megatron_mmsr1.procs.progress import say
from megatron_mmsr1.procs.service import Command, Service
from megatron_mmsr1.run import preflight
from megatron_mmsr1.run.model_server import model_server

POLL_S = 0.1


@dataclass(slots=True)
class Services:
    """`version`: of the weights that the engines hold, for who gives them none. `machines`: where the ranks run; None: here."""

    engines: list[str]
    search: str | None
    version: int = 0
    check: Callable[[], None] = lambda: None  # raises Interrupted once the run cannot go on without one that has died
    machines: Machines | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])  # that ranks need to find the others


@contextmanager
def services(cfg: RunConfig, machines: Machines, *, engine: bool = True, publishes: bool = False) -> Iterator[Services]:
    """The engines and the search server that the config names, or ones of our own on `machines` until the block ends.

    `publishes`: the engines get weights of this run's; else they must hold those of `model.path`, under any version. Servers
    that the config names are asked first whether they answer, engines also what they serve. A run that searches nothing has no
    search server. An engine that dies or hangs is replaced; one that cannot be is done without while there is another.
    Raises RunError if one does not become healthy, UsageError for an engine of another model.
    """
    preflight.search_answers(cfg)
    version = preflight.engines(cfg, publishes=publishes) if engine else 0
    with ExitStack() as stack:
        search, found, beside = cfg.search.url, EngineGroup([]), dict[str, Service]()
        checks: list[Callable[[], None]] = [machines.check]
        names = {SUMMARISER: cfg.search.summarise.model, JUDGE: cfg.placement.judge.name}
        for role, wanted in models(cfg).items():
            server = model_server(role, wanted, names[role], machines, Path(cfg.output) / "logs", cfg.engine)
            say(f"starting the {role} (log: {server.log})")
            beside[role] = stack.enter_context(server.watch(say))
        urls = {role: f"{server.url}/v1" for role, server in beside.items()}
        env = {JUDGE_URL: urls[JUDGE]} if JUDGE in urls else {}
        os.environ.update(env)  # of what scores in processes of this machine; ranks elsewhere are told
        if search is None and cfg.searches:
            server = stack.enter_context(_search_server(cfg, machines, urls.get(SUMMARISER)).start())
            checks.append(partial(_check, server))
            search = server.url
        if engine and not cfg.engine.urls:
            found = EngineGroup([Service(c) for c in _engines(cfg, machines, publishes)])
            stack.callback(found.stop)
            found.start()
            checks.append(found.check)
        _until_up(list(beside.values()))
        checks += [partial(_check, s) for s in beside.values()]

        def check() -> None:
            for one in checks:
                one()

        yield Services(list(cfg.engine.urls) or found.urls, search, version, check, machines, env)


class EngineGroup:
    """Engines that were started here. Their turns wait for one that is being replaced; it serves the weights published last."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = services
        self.lost: set[str] = set()

    @property
    def urls(self) -> list[str]:
        return [s.url for s in self.services]

    def start(self) -> None:
        """All at once, until all are ready. Raises what the first that fails ended with."""
        log = self.services[0].log
        what = "the engine (half a minute; log" if len(self.services) == 1 else f"{len(self.services)} engines (logs from"
        say(f"starting {what}: {log})")
        for s in self.services:
            s.watch(say)
        _until_up(self.services)

    def check(self) -> None:
        """Say it when one is lost for good. Raises Interrupted once none is left."""
        failed = {s.url: s.failed for s in self.services if s.failed is not None}
        for url in failed.keys() - self.lost:
            self.lost.add(url)
            left = len(self.services) - len(self.lost)
            if not left:
                raise Interrupted(str(failed[url]))
            say(f"{failed[url]}\nthe engine at {url} is lost; the run goes on with {left} of {len(self.services)}")

    def stop(self) -> None:
        """Each gets its grace time beside the others."""
        for s in self.services:
            s.ask_to_stop()
        for s in self.services:
            s.stop()


def _until_up(services: Sequence[Service]) -> None:
    while not all(s.up for s in services):
        for s in services:
            if s.failed is not None:
                raise s.failed
        time.sleep(POLL_S)


def _check(server: Service) -> None:
    try:
        server.check()
    except RunError as e:
        raise Interrupted(str(e)) from None


def _search_server(cfg: RunConfig, machines: Machines, summariser: str | None) -> Service:
    """`summariser`: URL of the one that the run has started."""
    from megatron_mmsr1.search.server import launch

    place = machines.plan.of(SEARCH)[0]
    machine = machines.of(place)
    log = Path(cfg.output) / "logs" / machines.log_name("search", place, alone=True)
    cache = Path(cfg.search.cache or Path(cfg.output) / "search-cache.sqlite")
    summarise = cfg.search.summarise.model_copy(update={"url": summariser} if summariser else {})
    search = cfg.search.model_copy(update={"summarise": summarise})
    command = launch.command(search, cache_path=cache, log=log, host=machine.address)
    return Service(replace(command, machine=machine))


def _engines(cfg: RunConfig, machines: Machines, publishes: bool) -> list[Command]:
    from megatron_mmsr1.rollout import engines as kinds
    from megatron_mmsr1.rollout.engines.base import Launch

    places = machines.plan.of(ENGINES)
    logs, kind, commands = Path(cfg.output) / "logs", kinds.get(cfg.engine.name), []
    for place in places:
        launch = Launch(
            model=Path(cfg.model.path),
            settings=cfg.engine,
            log=logs / machines.log_name("engine", place, alone=len(places) == 1),
            seed=cfg.seed,
            trains_pictures=not cfg.model.vision_frozen,
            follow=Path(cfg.output) / "weights" if publishes else None,
            place=machines.before(place),
            machine=machines.of(place),
            gpus=place.gpus or None,
            releases=cfg.placement.colocated,
        )
        command = kind.command(launch)
        commands.append(command if len(places) == 1 else replace(command, name=f"engine {place.index}"))
    return commands
