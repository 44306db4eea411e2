"""One running engine of every kind over the tiny checkpoints, for the contracts' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_checkpoint
from contracts.engine import EngineUnderTest
from rollout_fixtures import LIMITS, picture

from megatron_mmsr1.data.images import canonicalize
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.engines.base import Launch

TOKENIZER = tiny_checkpoint.tokenizer()
PAD = TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
KINDS = ("sglang", "transformers")


def under_test(kind: str, url: str, checkpoints: dict[str, Path]) -> EngineUnderTest:
    """A 56x56 picture is 4x4 patches of 14 pixels, merged 2x2: 4 tokens."""
    return EngineUnderTest(
        engine=engines.get(kind),
        url=url,
        first=checkpoints["random"],
        second=checkpoints["other"],
        words=list(range(5, 25)),
        pad=PAD,
        picture=canonicalize(picture(1), **LIMITS).png,
        picture_tokens=4,
    )


@pytest.fixture(scope="session")
def transformers_engine(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    kind = engines.get("transformers")
    log = tmp_path_factory.mktemp("transformers") / "engine.log"
    launch = Launch(model=checkpoints["random"], settings=kind.Settings(), log=log)
    with Service(kind.command(launch)).start() as running:
        yield running


@pytest.fixture(params=KINDS)
def tested(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> EngineUnderTest:
    """An engine of each kind in turn; SGLang's is the session's."""
    running = request.getfixturevalue("engine" if request.param == "sglang" else "transformers_engine")
    return under_test(request.param, running.url, checkpoints)


def part_of(root: int, name: str) -> int:
    """The pid of a process of the SGLang server below `root`: "server" itself, its "scheduler" or its "detokenizer", which it
    starts in this order."""
    below = [p for p in psutil.Process(root).children(recursive=True) if "-S" not in p.cmdline()]  # no guard
    found = [p for p in below if "megatron_mmsr1.rollout.engines.sglang.entry" in p.cmdline()]
    ours = sorted(found, key=lambda p: (p.create_time(), p.pid))
    parts: dict[str, psutil.Process] = dict(zip(("server", "scheduler", "detokenizer"), ours, strict=True))
    return parts[name].pid
