"""The engines and the search server of a served model: those that run already, checked, and those that are started here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs import http
from megatron_mmsr1.procs.service import Command, Service
from megatron_mmsr1.run import preflight
from megatron_mmsr1.sync.held import ask, require_tokenizer
from serving import router
from serving.settings import ServeConfig


class Services:
    """A context manager: inside, all that is started runs; leaving it ends it. `logs` is a directory for what they say.

    Raises, when it is made, UsageError or RunError for what cannot be started, or does not answer.
    """

    def __init__(
        self,
        cfg: ServeConfig,
        *,
        engines: Sequence[str],
        search: str | None,
        no_search: bool,
        state: Path,
        say: Callable[[str], None],
    ):
        self.cfg, self.state, self.logs = cfg, state, state / "logs"
        self._say = say
        self._given, self._given_search = [u.rstrip("/") for u in engines], search
        self._no_search = no_search
        self.running: list[Service] = []
        self._engines: list[Service] = []
        self._search: Service | None = None
        self._router: Service | None = None
        self._check()

    def _check(self) -> None:
        c = self.cfg
        as_run = RunConfig(model=c.model, rollout=c.rollout, search=c.search)
        if self._given:
            for url in self._given:
                check_engine(url, c)
        else:
            if c.router:
                router.require()
            preflight.model(c.model.path, "MODEL", c.model.family)
            preflight.pixels(as_run)
        if self._given_search is not None:
            preflight.answers(
                self._given_search, "/readyz", "--search", "search server (mmsr1 search serve); start it, or leave --search out"
            )
        elif not self._no_search:
            try:
                preflight.search(as_run)
            except UsageError as e:
                raise UsageError(f"{e}. With --no-search the model answers from what it knows") from None

    def __enter__(self) -> Self:
        engines = [] if self._given else [self._engine(n) for n in range(self.cfg.replicas)]
        before: Command | None = None
        if engines and self.cfg.router:
            limit_s = self.cfg.engine.startup_timeout_s
            before = router.command([c.url for c in engines], self.logs / "router.log", timeout_s=limit_s)
        # What cannot be started has been said by now, and nothing runs yet.
        self._engines = [self._keep(c) for c in engines]
        self._router = before and self._keep(before)
        if self._given_search is None and not self._no_search:
            from megatron_mmsr1.search.server import launch

            cache = Path(self.cfg.search.cache or self.state / "search-cache.sqlite")
            self._search = self._keep(launch.command(self.cfg.search, cache_path=cache, log=self.logs / "search.log"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for s in self.running:  # all at once: each gets its grace time beside the others
            s.ask_to_stop()
        for s in self.running:
            s.stop()

    @property
    def engines(self) -> list[str]:
        """Their URLs, once `check` has returned True."""
        if self._router is not None:
            return [self._router.url]
        return self._given or [k.url for k in self._engines]

    @property
    def search(self) -> str | None:
        return self._given_search if self._search is None else self._search.url

    @property
    def waiting(self) -> list[str]:
        """What is not up yet."""
        return [k.name for k in self.running if not k.up]

    def check_start(self) -> bool:
        """Whether all are up. Raises what one of them failed with."""
        for k in self.running:
            if k.failed is not None:
                raise k.failed
        return not self.waiting

    def check(self) -> None:
        """Raises RunError once nothing can answer any more: every engine of ours was given up, or what stands before them."""
        front = [self._router] if self._router is not None and self._router.failed is not None else self._engines
        if front and all(k.failed is not None for k in front):
            failed = front[0].failed
            raise failed if isinstance(failed, RunError) else RunError(str(failed))

    def _keep(self, command: Command) -> Service:
        """Started in a thread, and started again when it dies or hangs."""
        service = Service(command).watch(self._say)
        self.running.append(service)
        return service

    def _engine(self, n: int) -> Command:
        from megatron_mmsr1.rollout import engines
        from megatron_mmsr1.rollout.engines.base import Launch

        c = self.cfg
        which = f"-{n}" if c.replicas > 1 else ""
        log = self.logs / f"engine{which}.log"
        launch = Launch(model=Path(c.model.path), settings=c.engine, log=log, place=n, streams=True)
        command = engines.get(c.engine.name).command(launch)
        return replace(command, name=f"engine {n + 1}") if which else command


def check_engine(url: str, cfg: ServeConfig) -> None:
    """The engine at `url` answers, and reads token ids as MODEL's tokenizer writes them, as far as can be told from here.

    Raises RunError where nothing answers, UsageError where the engine's own tokenizer lies on this machine and is another one.
    """
    from megatron_mmsr1.rollout import engines

    preflight.require_url(url, "--engine")
    if http.answers(f"{url}/readiness"):  # SGLang's router, whose engines cannot be asked through it
        return
    control = engines.get(cfg.engine.name).control(url, timeout_s=preflight.TIMEOUT_S)
    require_tokenizer(ask(control, "--engine"), Path(cfg.model.path), f"--engine: {url}")
