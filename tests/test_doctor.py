"""The doctor: the facts of this very machine, and that the warnings follow from them."""

from __future__ import annotations

import json
import os
import socket
from importlib import metadata

import pytest
import torch

from megatron_mmsr1.procs import doctor


def test_facts_are_those_of_this_environment() -> None:
    facts = doctor.collect()
    assert facts["packages"]["torch"] == metadata.version("torch")
    assert facts["packages"]["megatron-core"] == metadata.version("megatron-core")
    assert facts["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert len(facts["cuda"]["devices"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA is described")
def test_a_machine_without_cuda_is_told_what_runs_unfused() -> None:
    facts = doctor.collect()
    assert facts["cuda"]["backend"] == "gloo"
    assert facts["attention"]["engine"] == "torch_native"
    assert any("no CUDA device" in w for w in facts["warnings"])


def test_a_taken_port_is_a_warning() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        facts = doctor.collect(ports={port: "thing under test"})
    assert facts["ports"][str(port)] == "taken"
    assert any(f"port {port}" in w and "thing under test" in w for w in facts["warnings"])


@pytest.mark.gpu
def test_on_a_gpu_what_is_missing_is_named() -> None:
    facts = doctor.collect()
    assert facts["cuda"]["backend"].startswith("nccl")
    missing = [p for p in doctor.GPU_PACKAGES if facts["packages"][p] is None]
    assert all(any(w.startswith(p) for w in facts["warnings"]) for p in missing)


def test_show_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show(as_json=True)
    assert "packages" in json.loads(capsys.readouterr().out)
    doctor.show(as_json=False)
    out = capsys.readouterr().out
    for word in ("python", "cores", "cuda", "megatron-core", "sgl_kernel", "attention"):
        assert word in out
