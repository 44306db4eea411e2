"""The engines and the search server of a served model: those that run already, checked, and those that are started here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs import http
from megatron_mmsr1.procs.ports import HOST, free_port, require_port
from megatron_mmsr1.procs.service import Service as Started
from megatron_mmsr1.run import preflight
from serving import router
from serving.restarting import Restarting, Service
from serving.settings import ServeConfig

# The ids that are new with each event, instead of all so far: the events of a long turn stay short.
STREAMING = {"incremental_streaming_output": True}


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
        self.running: list[Restarting] = []
        self._engines: list[Restarting] = []
        self._search: Restarting | None = None
        self._router: Restarting | None = None
        self._check()

    def _check(self) -> None:
        c = self.cfg
        as_run = RunConfig(model=c.model, rollout=c.rollout, search=c.search)
        if self._given:
            for url in self._given:
                check_engine(url, c.model.path)
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
        if not self._given:
            urls = [self._engine(n) for n in range(self.cfg.replicas)]
            if self.cfg.router:
                self._router = self._keep(router.NAME, self._start_router(urls))
        if self._given_search is None and not self._no_search:
            self._search = self._keep("the search server", self._start_search())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for k in self.running:
            k.ask_to_stop()
        for k in self.running:
            k.stop()

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

    def _keep(self, name: str, start: Callable[[Callable[[], None]], Service]) -> Restarting:
        restarted = Restarting(name, start, self._say)
        self.running.append(restarted)
        return restarted

    def _engine(self, n: int) -> str:
        """Its URL, where it will be."""
        from megatron_mmsr1.rollout import engines

        c = self.cfg
        native: dict[str, Any] = getattr(c.engine, "sglang", {})
        named = native.get("port")
        port = int(named) + n if named else free_port()
        require_port(port, "the engine")
        settings = c.engine.model_copy()
        if c.engine.name == "sglang":
            from megatron_mmsr1.rollout.engines.sglang.server import has_cuda

            cuda = native.get("device", "cuda") != "cpu" and has_cuda()
            native = STREAMING | (_gpus_of(n, native) if cuda else {}) | native
            settings = c.engine.model_copy(update={"sglang": native})
        which = f"-{n}" if c.replicas > 1 else ""

        def start(wanted: Callable[[], None]) -> Service:
            _wait_for_port(port, wanted)
            log = self.logs / f"engine{which}.log"
            launch = engines.get(c.engine.name).launch
            return launch(Path(c.model.path), settings, log, port=port, progress=lambda _: wanted())

        self._engines.append(self._keep(f"engine {n + 1}" if which else "the engine", start))
        return f"http://{native.get('host', HOST)}:{port}"

    def _start_router(self, engines: list[str]) -> Callable[[Callable[[], None]], Service]:
        found = router.command(engines, self.logs / "router.log", timeout_s=self.cfg.engine.startup_timeout_s)

        def start(wanted: Callable[[], None]) -> Service:
            return Started(found).start(lambda _: wanted())

        return start

    def _start_search(self) -> Callable[[Callable[[], None]], Service]:
        from megatron_mmsr1.search.server import launch

        port = free_port()
        cache = Path(self.cfg.search.cache or self.state / "search-cache.sqlite")

        def start(wanted: Callable[[], None]) -> Service:
            _wait_for_port(port, wanted)
            return launch.launch(self.cfg.search, cache_path=cache, log=self.logs / "search.log", port=port)

        return start


def _gpus_of(n: int, native: dict[str, Any]) -> dict[str, Any]:
    """Those after the ones of the engines before it."""
    a = {k: int(native.get(k) or 1) for k in ("tp_size", "pp_size", "dp_size")}
    each = a["tp_size"] * a["pp_size"] * (1 if native.get("enable_dp_attention") else a["dp_size"])
    return {"base_gpu_id": n * each} if n else {}


def _wait_for_port(port: int, wanted: Callable[[], None], seconds: float = 10.0) -> None:
    """What died a moment ago may hold it for a moment more."""
    from megatron_mmsr1.procs.ports import port_is_free

    until = time.monotonic() + seconds
    while not port_is_free(port, HOST) and time.monotonic() < until:
        wanted()
        time.sleep(0.1)


def check_engine(url: str, path: str) -> None:
    """The engine at `url` answers, and reads token ids as MODEL's tokenizer writes them, as far as can be told from here.

    Raises RunError where nothing answers, UsageError where the engine's own tokenizer lies on this machine and is another one.
    """
    what = "SGLang server; start it, or leave --engine out"
    try:
        preflight.answers(url, "/model_info", "--engine", what)
    except RunError as e:
        if "HTTP 404" not in str(e):
            raise
        preflight.answers(url, "/readiness", "--engine", what)  # SGLang's router, whose engines cannot be asked through it
        return
    try:
        said = http.get(f"{url}/model_info").json()
    except http.Unanswered as e:
        raise RunError(f"--engine: {url}/model_info cannot be read ({e}): is it an SGLang server?") from None
    held = str(said.get("tokenizer_path") or said.get("model_path") or "") if isinstance(said, dict) else ""
    theirs, ours = Path(held) / "tokenizer.json", Path(path) / "tokenizer.json"
    if theirs.is_file() and ours.is_file() and theirs.read_bytes() != ours.read_bytes():
        raise UsageError(f"--engine: {url} serves {held}, whose tokenizer is not that of {path}: name the model that it serves")
