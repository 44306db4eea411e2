"""The examples of docs/extend/engine.md and transport.md as a person runs them: an engine of one's own takes the weights of a
transport of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts import transport as contract
from contracts.transport import TransportUnderTest
from doc_examples import write_examples

from megatron_mmsr1 import config
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.engines.base import Launch
from megatron_mmsr1.sync import transports


def test_the_examples_work_together(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_examples("engine.md", tmp_path) | write_examples("transport.md", tmp_path)
    monkeypatch.chdir(tmp_path)  # as the pages have it: the files stand beside the config
    engine_cfg = config.load(files["my_engine.yaml"]).engine
    sync_cfg = config.load(files["my_transport.yaml"]).train.sync
    kind = engines.get("my_engine.py:Engine")
    assert isinstance(engine_cfg, kind.Settings)
    launch = Launch(model=checkpoints["random"], settings=engine_cfg, log=tmp_path / "engine.log")
    with Service(kind.command(launch)).start() as running:
        part = transports.get("my_transport.py:Transport")
        under_test = TransportUnderTest(
            part, sync_cfg, [kind.control(running.url)], tmp_path / "weights", checkpoints["random"], checkpoints["other"]
        )
        contract.a_push_is_as_good_as_a_load(under_test)
    assert (tmp_path / "weights" / "latest" / "config.json").is_file()
