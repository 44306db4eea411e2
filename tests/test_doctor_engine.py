"""The doctor's round trip through real engines: SGLang's of the session, and one of transformers that it starts itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_tasks import alone, by_name, config

from megatron_mmsr1.doctor.check import Level
from megatron_mmsr1.doctor.checks import engine as check
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.ports import free_port
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout.generation import Generation


def test_a_round_trip_through_an_engine_that_runs(engine: Service, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    cfg = config(tmp_path, model={"path": str(checkpoints["random"])}, engine={"urls": [engine.url]})
    (found,) = alone(check.run, cfg)
    assert found.what == f"round trip {engine.url}" and found.level is Level.OK
    assert 1 <= found.data["tokens"] <= check.TOKENS and found.data["ms"] > 0
    assert found.data["attention"] == "torch_native"  # as megatron_mmsr1/rollout/engines/sglang starts it without CUDA


def test_an_engine_of_another_model_is_refused(engine: Service, tmp_path: Path) -> None:
    from loop_fixtures import COLD_START

    with pytest.raises(UsageError, match=r"engine\.urls"):
        alone(check.run, config(tmp_path, model={"path": str(COLD_START)}, engine={"urls": [engine.url]}))


@pytest.mark.process
def test_none_is_started_unless_it_is_asked_for(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    cfg = config(tmp_path, model={"path": str(checkpoints["random"])}, engine={"name": "transformers"})
    (found,) = alone(check.run, cfg)
    assert "not started" in found.value and alone(check.run) == []
    started = by_name(alone(check.run, cfg, asked=True))
    assert started.pop("start").data["seconds"] > 0
    ((name, trip),) = started.items()
    assert name.startswith("round trip http://127.0.0.1:") and trip.data["tokens"] >= 1 and trip.data["attention"] == ""


def test_an_address_where_nobody_listens_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RunError, match=url):
        alone(check.run, config(tmp_path, model={"path": str(checkpoints["random"])}, engine={"urls": [url]}))


@pytest.mark.parametrize(
    ("done", "says"),
    [
        (Generation([1, 2], [-0.5, -0.25], 3, "length"), ""),
        (Generation([], [], 3, "stop"), "0 tokens"),
        (Generation([1, 2], [-0.5], 3, "length"), "2 tokens with 1 log-probs"),
        (Generation([1], [float("nan")], 3, "length"), "log-probs that are none"),
        (Generation([1], [0.5], 3, "length"), "log-probs that are none"),
        (Generation([1], [-0.5], 2, "length"), "version 2, while it says that it serves 3"),
    ],
)
def test_what_a_turn_must_be(done: Generation, says: str) -> None:
    found = check._wrong(done, 3)
    assert says in found and bool(says) == bool(found)
