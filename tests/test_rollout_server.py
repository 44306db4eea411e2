"""Starting SGLang: its arguments as a command line, and what a person sees when it cannot start."""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
from pathlib import Path

import pytest
from conftest import launch_engine

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.guard import descendants
from megatron_mmsr1.rollout.engines.sglang import SGLangSettings
from megatron_mmsr1.rollout.engines.sglang.entry import command_line


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser()
    p.add_argument("--mem-fraction-static", type=float)
    p.add_argument("--tp-size", "--tensor-parallel-size", dest="tp_size", type=int)
    p.add_argument("--enable-metrics", action="store_true")
    p.add_argument("--warm", action=argparse.BooleanOptionalAction)
    p.add_argument("--cuda-graph-bs", nargs="+", type=int)
    p.add_argument("--mm-process-config")
    return p


@pytest.mark.parametrize(
    ("arguments", "argv"),
    [
        ({"mem_fraction_static": 0.7, "tp_size": 2}, ["--mem-fraction-static", "0.7", "--tensor-parallel-size", "2"]),
        ({"enable_metrics": True}, ["--enable-metrics"]),
        ({"enable_metrics": False, "tp_size": None}, []),
        ({"warm": True}, ["--warm"]),
        ({"warm": False}, ["--no-warm"]),
        ({"cuda_graph_bs": [1, 2]}, ["--cuda-graph-bs", "1", "2"]),
        ({"mm_process_config": {"image": {"max_pixels": 4}}}, ["--mm-process-config", '{"image": {"max_pixels": 4}}']),
    ],
)
def test_native_arguments(parser, arguments, argv):
    assert command_line(arguments, parser) == argv
    parser.parse_args(argv)


def test_a_misspelt_argument_is_met_with_the_right_one(parser):
    with pytest.raises(ValueError, match=r"engine\.sglang\.mem_fraction_statik.*did you mean mem_fraction_static\?"):
        command_line({"mem_fraction_statik": 0.7}, parser)
    with pytest.raises(ValueError, match="true or false"):
        command_line({"enable_metrics": "yes"}, parser)


def test_sglangs_own_refusal_is_the_persons_error(checkpoints, tmp_path):
    """The real server: an unknown name never gets as far as loading the model."""
    with pytest.raises(UsageError, match="did you mean mem_fraction_static"):
        launch_engine(checkpoints["random"], tmp_path / "engine.log", SGLangSettings(sglang={"mem_fraction_statik": 0.5}))


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        ("dtype", "float17", UsageError, "invalid choice: 'float17'"),
        ("max_total_tokens", 1, RunError, "max_running_request is zero"),
    ],
)
def test_a_plain_mistake_is_told_in_a_line_with_the_log(checkpoints, tmp_path, key, value, error, said):
    """Also one that shows only in the scheduler: it once came as forty lines of a traceback."""
    log = tmp_path / "engine.log"
    with pytest.raises(error) as e:
        launch_engine(checkpoints["random"], log, SGLangSettings(sglang={key: value}))
    message = str(e.value)
    assert said in message and str(log) in message
    assert "Traceback" not in message and "  File " not in message and len(message.splitlines()) == 1


def test_no_model_is_the_persons_error(tmp_path):
    with pytest.raises(UsageError, match=r"config\.json"):
        launch_engine(tmp_path, tmp_path / "engine.log")


def test_a_taken_port_is_named(checkpoints, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(RunError, match=str(port)):
            launch_engine(checkpoints["random"], tmp_path / "engine.log", SGLangSettings(sglang={"port": port}))


def test_too_slow_a_start_shows_the_log_and_leaves_nothing(checkpoints, tmp_path):
    log = tmp_path / "engine.log"
    with pytest.raises(RunError, match=r"startup_timeout_s=0\.5") as e:
        launch_engine(checkpoints["random"], log, SGLangSettings(startup_timeout_s=0.5))
    assert str(log) in str(e.value)


def mapped(root: int) -> set[Path]:
    """The files of /dev/shm that processes below `root` have mapped by a name."""
    found = set[Path]()
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            found |= {Path(m[0]) for line in lines if (m := re.search(r"/dev/shm/\S+$", line)) and "(deleted)" not in line}
    return {f for f in found if f.exists()}


@pytest.mark.slow  # a server of its own
def test_its_shared_memory_goes_with_it(checkpoints, tmp_path):
    """SGLang never removes the file in which its schedulers tell their load: one stayed of every engine that ever ran."""
    with launch_engine(checkpoints["random"], tmp_path / "engine.log") as server:
        made = mapped(server.child.pid)
        assert any(f.name.startswith("sglang_loads_") for f in made)
    assert not [f for f in made if f.exists()]
