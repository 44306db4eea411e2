"""The trained weights on their way to the engines, and which exported versions stay on disk."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout import engines as kinds
from megatron_mmsr1.rollout.engines.base import Unreachable
from megatron_mmsr1.sync import transports
from megatron_mmsr1.sync.transports.base import Transport
from megatron_mmsr1.sync.update import everywhere

POLL_S = 1.0
MEMORY: tuple[Literal["weights", "kv_cache"], ...] = ("weights", "kv_cache")

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.actor import MegatronActor
    from megatron_mmsr1.rollout.engines.base import Control


class Weights:
    """`seconds`: how long the last publication took. `absent`: the engines that had no part in it, since nothing answered at
    their addresses while another engine did, known on rank 0. `failed_first`: why it took a second try, if it did. An engine
    that comes back has a part in the next publication."""

    def __init__(self, cfg: RunConfig, actor: MegatronActor, engines: list[str]) -> None:
        self.cfg, self.actor = cfg, actor
        self.directory = Path(cfg.output) / "weights"
        self.seconds = 0.0
        self.absent: list[str] = []
        self.failed_first = ""
        self.transport: Transport | None = None
        self._all: list[Control] = []
        self._present: list[Control] = []  # the list that the transport reads
        if engines and actor.parallel.rank == 0:
            self._all = [kinds.get(cfg.engine.name).control(url) for url in engines]
            self._present[:] = self._all
            self.directory.mkdir(parents=True, exist_ok=True)
            part = transports.get(str(getattr(cfg.train.sync, "name", cfg.train.sync)))
            self.transport = part.open(cfg.train.sync, self._present, home=self.directory, model=Path(cfg.model.path))

    def lend_memory(self) -> None:
        """Collective. The engines' device memory is the trainer's until the next publication (`placement.colocated`), and the
        trainer's own is back."""
        failed = everywhere(self._present, _release)
        self._agree("; ".join(f"{url} did not give its memory back: {why}" for url, why in failed.items()))
        self.actor.restore()

    def publish(self, version: int) -> None:
        """Collective. The weights into every engine under this version; the engines confirm it. An engine that dies meanwhile
        does not end the run: after a failure there is a second try, with those that answer then, once one does. Colocated
        engines take their memory again, for which the trainer gives up its own. Raises RunError on every rank as the transport
        does."""
        started = time.monotonic()
        if self.cfg.placement.colocated:
            self.actor.release(weights=False)
        broadcast = self.actor.parallel.broadcast_object
        self.failed_first = broadcast(self._try(version))
        if self.failed_first:
            self._await_an_engine()
            self._agree(self._try(version))
        if self.cfg.placement.colocated:
            self.actor.release(weights=True)
        self.seconds = time.monotonic() - started

    def _try(self, version: int) -> str:
        """Collective. Why it failed, on rank 0; "" elsewhere."""
        weights = self.actor.weights()
        failed = ""
        if self.transport is not None:
            if self.cfg.placement.colocated:  # also what an earlier life of this run's ranks was lent
                everywhere(self._all, lambda e: e.reclaim(MEMORY))
            self._look()
            try:
                self.transport.push(weights, version)
                prune(self.directory, "v*", keep=self.cfg.train.keep_weights, current=self.directory / f"v{version:06d}")
            except RunError as e:
                failed = str(e)
        for _ in weights:  # gathering them is collective: to the end, whoever uses them
            pass
        return failed

    def _await_an_engine(self) -> None:
        """On rank 0: as long as a turn waits for one."""
        end = time.monotonic() + self.cfg.engine.outage_s
        while self._all and len(everywhere(self._all, _reach)) == len(self._all) and time.monotonic() < end:
            time.sleep(POLL_S)

    def _agree(self, failed: str) -> None:
        """Raises on every rank what rank 0 says."""
        if said := self.actor.parallel.broadcast_object(failed):
            raise RunError(said)

    def _look(self) -> None:
        """Who can be reached; all of them where nobody can, so that the failure is told as it is."""
        gone = everywhere(self._all, _reach)
        self._present[:] = [e for e in self._all if e.url not in gone] or self._all
        self.absent = [e.url for e in self._all if e not in self._present]


def lend_first(cfg: RunConfig, engines: list[str]) -> None:
    """Before there is a trainer: the device memory that it is built in. An engine that nothing answers for is told of later, by
    the first publication. Raises RunError for one that does not give its memory back."""
    failed = everywhere([kinds.get(cfg.engine.name).control(url) for url in engines], _lend)
    if failed:
        raise RunError("; ".join(f"{url} did not give its memory back: {why}" for url, why in failed.items()))


def _lend(engine: Control) -> None:
    with suppress(Unreachable):
        _release(engine)


def _release(engine: Control) -> None:
    engine.pause("abort")  # a probe of its health may be in flight, and only an idle engine gives memory back
    engine.release(MEMORY)


def _reach(engine: Control) -> None:
    try:
        engine.served()
    except Unreachable:
        raise
    except RunError:
        return  # it answers, if not well: the update will say what is wrong


def prune(parent: Path, pattern: str, *, keep: int, current: Path) -> None:
    """Of the directories that come before `current` in the order of their names, leave the last `keep` - 1.

    What comes after it stays: a run that was set back to an earlier checkpoint has later ones, which are not ours to judge.
    """
    before = [p for p in sorted(parent.glob(pattern)) if p.name < current.name]
    for old in before[: max(0, len(before) - (keep - 1))]:
        shutil.rmtree(old)
