"""The images' pins, files and commands fit together and fit what the packages themselves ask for. Nothing is built."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
HERE = ROOT / "containers"
DOCKER, VLLM, APPTAINER = ((HERE / n).read_text() for n in ("Dockerfile", "Dockerfile.vllm", "mmsr1.def"))


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", path.read_text(), re.MULTILINE))


CPU, GPU = pins(ROOT / "requirements.lock"), pins(ROOT / "requirements-gpu.lock")
SECOND = pins(HERE / "requirements-vllm.lock")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pin_has_a_hash() -> None:
    for path in (ROOT / "requirements.lock", ROOT / "requirements-gpu.lock", HERE / "requirements-vllm.lock"):
        blocks = re.split(r"\n(?=[a-zA-Z0-9])", path.read_text().strip())
        assert blocks and not [b.splitlines()[0] for b in blocks if "--hash=sha256:" not in b]


def test_the_gpu_lock_is_that_of_the_gpu_extra() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    wanted = {plain(r.name): next(iter(r.specifier)).version for r in map(Requirement, extra)}
    assert {name: GPU.get(name) for name in wanted} == wanted
    assert not set(GPU) & set(CPU), "a package in both locks could have two versions"


def test_sglang_gets_the_kernels_that_it_asks_for() -> None:
    asked = {plain(r.name): r.specifier for r in map(Requirement, importlib.metadata.requires("sglang") or [])}
    for name in ("sglang-kernel", "flashinfer-python", "sgl-deep-gemm", "torch-memory-saver"):
        assert asked[name].contains(GPU[name]), f"sglang asks for {name}{asked[name]}, the lock has {GPU[name]}"


@pytest.mark.parametrize(
    "name", ["torch", "torchvision", "transformers", "tokenizers", "safetensors", "nvidia-nccl-cu13", "triton"]
)
def test_both_engines_have_the_trainer_s_version(name: str) -> None:
    """Weights travel between their processes by NCCL and CUDA IPC, and prompts by the same tokenizer and processor."""
    assert SECOND[name] == CPU[name]


def test_cuda_is_the_one_that_torch_was_built_with() -> None:
    images = set(re.findall(r"nvidia/cuda:(\S+)-cudnn-devel-ubuntu24\.04", DOCKER + APPTAINER))
    assert images == {".".join(CPU["cuda-toolkit"].split(".")[:3])}


def test_what_the_images_copy_is_there() -> None:
    named = {w for line in re.findall(r"^COPY (.*) \S+$", DOCKER, re.MULTILINE) for w in line.split()}
    files = re.search(r"^%files\n((?: +.*\n)+)", APPTAINER, re.MULTILINE)
    assert files and {line.split()[0] for line in files[1].splitlines()} == named
    of_vllm = re.findall(r"^COPY (\S+) \S+$", VLLM, re.MULTILINE)
    assert of_vllm and not [n for n in (*named, *of_vllm) if not (ROOT / n).exists()]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == {*named, *of_vllm}
    # What env.sh installs is what pyproject.toml packs, and the environment's inputs.
    packed = re.search(r"packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    assert packed and set(re.findall(r'"(\w+)"', packed[1])) <= named


@pytest.mark.parametrize("text", [DOCKER, VLLM], ids=["Dockerfile", "Dockerfile.vllm"])
def test_an_image_runs_as_nobody_special_and_holds_no_secret(text: str) -> None:
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001"
    assert not re.search(r"^(?:ENV|ARG) .*(?:KEY|TOKEN|SECRET|PASSWORD)", text, re.MULTILINE)
    assert "HEALTHCHECK" in text and not re.search(r"^ADD |:latest", text, re.MULTILINE)


def test_both_images_install_the_same_system_packages() -> None:
    found = [re.search(r"--no-install-recommends (.*?)(?:&& rm|\n    rm)", t, re.DOTALL) for t in (DOCKER, APPTAINER)]
    docker, apptainer = (set(f[1].replace("\\", " ").split()) - {"&&"} for f in found if f)
    assert docker == apptainer and "python3.12-venv" in docker


def test_the_check_passes() -> None:
    done = subprocess.run([HERE / "check.sh"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    if shutil.which("shellcheck"):
        said = subprocess.run(
            ["shellcheck", HERE / "check.sh", ROOT / "scripts" / "lock.sh"], capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stdout
