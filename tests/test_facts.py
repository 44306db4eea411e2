"""The facts of this very machine, and that errors and warnings follow from them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs import facts, patches


def test_facts_are_those_of_this_environment() -> None:
    found = facts.collect()
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["packages"]["megatron-core"] == metadata.version("megatron-core")
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert len(found["cuda"]["devices"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(found)) == found


@pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is not None, reason="transformer-engine is installed")
def test_what_a_training_process_says_of_itself_is_true() -> None:
    """The trainer imports megatron-bridge past a stub; its environment.json must not call that an installed package."""
    script = (
        "import sys; from megatron_mmsr1.megatron import platform; platform.install();"
        "from megatron_mmsr1.procs import facts; import megatron.bridge;"
        "left = [m for m in sys.modules if m.startswith('transformer_engine')];"
        "print(facts.collect()['packages']['transformer-engine'], left)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert out.stdout.splitlines()[-1] == "None []", out.stdout


def test_every_patch_fits_this_environment_and_its_file_checks_it() -> None:
    root = Path(facts.__file__).parents[1]
    for p in patches.PATCHES:
        assert p.fits or p.installed is None, f"{p.name} is for {p.package} {p.version}, {p.installed} is installed"
        files = [root / p.file] if p.file.endswith(".py") else sorted((root / p.file).rglob("*.py"))
        assert any(f'patches.check("{p.name}")' in f.read_text() for f in files), p.name
    listed = {p["name"] for p in facts.collect()["patches"]}
    assert listed == {p.name for p in patches.PATCHES}


def test_a_patch_refuses_another_version_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    p = dataclasses.replace(patches.PATCHES[0], version="0.1.0")
    monkeypatch.setitem(patches._BY_NAME, p.name, p)
    monkeypatch.setattr(facts, "PATCHES", (p,))
    with pytest.raises(RunError, match=rf"{p.file}.*{p.package} 0.1.0.*{p.installed} is installed"):
        patches.check(p.name)
    assert any(p.file in w and "refuse to run" in w for w in facts.collect()["errors"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA is described")
def test_a_machine_without_cuda_is_told_what_runs_unfused() -> None:
    found = facts.collect()
    assert found["cuda"]["backend"] == "gloo"
    assert found["attention"]["engine"] == "torch_native"
    assert any("no CUDA device" in w for w in found["warnings"])


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.2\n",
            "550.54.15",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n", "580.95.05"),
        ("something else\n", None),
    ],
)
def test_the_driver_s_version(said: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "DRIVER", tmp_path / "version")
    assert facts.driver() is None
    (tmp_path / "version").write_text(said)
    assert facts.driver() == version


def test_a_taken_port_is_a_warning() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        found = facts.collect(ports={port: "thing under test"})
    assert found["ports"][str(port)] == "taken"
    assert any(f"port {port}" in w and "thing under test" in w for w in found["warnings"])


@pytest.mark.gpu
def test_on_a_gpu_what_is_missing_is_named() -> None:
    found = facts.collect()
    assert found["cuda"]["backend"].startswith("nccl")
    missing = [p for p in facts.GPU_PACKAGES if found["packages"][p] is None]
    assert all(any(w.startswith(p) for w in found["warnings"]) for p in missing)
