"""A real SGLang server that loses a process or hangs: found, replaced at its URL, and the turns that it owed asked again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from engine_fixtures import part_of
from process_fixtures import until

from megatron_mmsr1.procs.liveness import FAILURES
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout.engines.base import Launch
from megatron_mmsr1.rollout.engines.sglang import ENGINE, SGLangSettings

pytestmark = pytest.mark.slow  # minutes; tests/test_serve.py kills and stops an engine in the ordinary run
HUNG_AFTER_S = 24.0  # a question takes 6 s to fail: a busy machine is no hung engine
TURNS, TOKENS = 4, 60


@dataclass
class Watched:
    """`said`: what the service told; `failed`: questions whether it is alive that failed since `failed` was set to 0."""

    service: Service
    said: list[str] = field(default_factory=list)
    failed: int = 0


@pytest.fixture(scope="module")
def watched(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    settings = SGLangSettings(hung_after_s=HUNG_AFTER_S, sglang={"max_total_tokens": 16384})
    log = tmp_path_factory.mktemp("replaced") / "engine.log"
    command = ENGINE.command(Launch(model=checkpoints["random"], settings=settings, log=log, version=3))
    alive = command.alive
    assert alive is not None

    def counted(url: str) -> bool:
        found = alive(url)
        w.failed += not found
        return found

    w = Watched(Service(replace(command, alive=counted)))
    with w.service.start().watch(w.said.append):
        yield w


async def turns(url: str) -> list[Any]:
    """Several conversations at once, as the rollout worker has them."""
    client = ENGINE.client([url], retries=1, hung_after_s=HUNG_AFTER_S, outage_s=600)
    try:
        options: dict[str, Any] = {"max_new_tokens": TOKENS, "temperature": 1.0}
        talks = [client.conversation(str(i)) for i in range(TURNS)]
        return await asyncio.gather(*(t.generate([5, 6, 7], [], seed=i, **options) for i, t in enumerate(talks)))
    finally:
        await client.close()


def replaced(w: Watched, harm: Callable[[], None]) -> str:
    """Do `harm`, then ask for turns. They end as they would have without it; what the service said of the end."""
    url, before = w.service.url, [g.token_ids for g in asyncio.run(turns(w.service.url))]
    pid, n = w.service.child.pid, w.service.restarts
    w.said.clear()
    w.failed = 0
    harm()
    after = asyncio.run(turns(url))
    assert [g.token_ids for g in after] == before and {g.weight_version for g in after} == {3}
    until(lambda: w.service.up and len(w.said) == 2)
    assert w.service.restarts == n + 1 and w.service.child.pid != pid and w.service.url == url
    assert "is started again" in w.said[0] and "is back" in w.said[1]
    # No more questions than its settings allow; one more may be under way when it is ended.
    assert w.failed <= FAILURES + 2
    return w.said[0]


def test_one_that_lost_its_detokenizer(watched: Watched) -> None:
    """SGLang notices it itself and ends; its front would else go on taking turns that nobody answers."""
    said = replaced(watched, lambda: os.kill(part_of(watched.service.child.pid, "detokenizer"), signal.SIGKILL))
    assert "the engine was ended" in said or "the engine ended" in said


def test_one_whose_scheduler_hangs(watched: Watched) -> None:
    """Every process lives and the port is open: only that no token comes shows it."""
    said = replaced(watched, lambda: os.kill(part_of(watched.service.child.pid, "scheduler"), signal.SIGSTOP))
    assert "has not answered" in said and watched.failed >= FAILURES
