"""What this project replaces inside other packages, each with the one version that it was written for.

A patch reaches into internals, which may change with any release: it refuses every other version by name instead of running
on a guess. `mmsr1 doctor` lists them. Each lives in one file and calls `check` before it changes anything.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata

from megatron_mmsr1.errors import RunError


@dataclass(frozen=True, slots=True)
class Patch:
    """`file` is below megatron_mmsr1/; `where` says on which machines it is used."""

    name: str
    package: str
    version: str
    file: str
    why: str
    where: str = "everywhere"

    @property
    def installed(self) -> str | None:
        """The version that is here; None if the package is not."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    @property
    def fits(self) -> bool:
        found = self.installed
        return found is not None and found.split("+")[0] == self.version  # a build's local label (+cpu) changes no source


PATCHES = (
    Patch(
        "core-on-cpu",
        "megatron-core",
        "0.19.2",
        "megatron/cpu.py",
        "CUDA devices, streams and generators that it names in its code are answered by the CPU's",
        "without CUDA",
    ),
    Patch(
        "torch-cuda-on-cpu",
        "torch",
        "2.13.0",
        "megatron/cpu.py",
        "torch.cuda's functions answer for the CPU, and tensors asked for on CUDA are made there",
        "without CUDA",
    ),
    Patch(
        "bridge-without-te",
        "megatron-bridge",
        "0.6.2",
        "megatron/bridge.py",
        "it imports transformer-engine unconditionally, and takes it to be there; a stub stands there while it is imported",
        "without transformer-engine",
    ),
    Patch(
        "group-step-adam",
        "megatron-core",
        "0.19.2",
        "megatron/adam.py",
        "torch's Adam keeps a step a parameter, which checkpoints of the distributed optimizer do not survive",
        "without apex and transformer-engine",
    ),
    Patch(
        "packed-rope",
        "megatron-core",
        "0.19.2",
        "megatron/rope.py",
        "the fused rotary kernel numbers the tokens itself and loses multimodal positions",
    ),
    Patch(
        "checkpoint-queue",
        "megatron-core",
        "0.19.2",
        "megatron/saving.py",
        "saving starts a server process a rank for a queue, and writes what it has planned itself; a thread of ours does",
    ),
    Patch(
        "sglang-on-cpu",
        "sglang",
        "0.5.21",
        "rollout/engines/sglang/cpu.py",
        "seeded sampling and batched attention, which it has for GPUs only",
        "without CUDA",
    ),
    Patch(
        "sgl-kernel-on-cpu",
        "sglang",
        "0.5.21",
        "rollout/engines/sglang/cpu_shims",
        "it imports sgl_kernel, whose wheel holds CUDA objects only",
        "without CUDA",
    ),
    Patch(
        "bound-store",
        "torch",
        "2.13.0",
        "procs/bound_store.py",
        "its rendezvous store listens on every interface and asks nobody who they are",
    ),
)
_BY_NAME = {p.name: p for p in PATCHES}
_ACCEPTED: set[str] = set()


def accept(name: str) -> None:
    """Let `check` warn of another version instead of refusing it, in this process. Only for checks of a machine, whose results
    name its versions (`benchmarks/gpu`); never for a run. KeyError for a patch that is not listed."""
    _ACCEPTED.add(_BY_NAME[name].name)


def check(name: str) -> None:
    """To be called before the patch is applied. RunError that names package and versions unless it fits; KeyError for a patch
    that is not listed above."""
    p = _BY_NAME[name]
    if p.fits:
        return
    found = f"megatron_mmsr1/{p.file} changes internals of {p.package} {p.version}, but {p.installed or 'none'} is installed"
    if name not in _ACCEPTED:
        raise RunError(
            f"{found}: install {p.package}=={p.version} (scripts/env.sh), or adapt the file and its entry in procs/patches.py"
        )
    print(f"warning: {found}: applied all the same, for this check only", file=sys.stderr, flush=True)
