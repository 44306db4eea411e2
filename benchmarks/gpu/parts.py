"""The parts of the check in their order: what each needs, and how long it may take."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

# Module -> the package that brings it.
_TRAINER = {
    "megatron.core": "megatron-core",
    "megatron.bridge": "megatron-bridge",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "omegaconf": "omegaconf",
    "orjson": "orjson",
}


@dataclass(frozen=True)
class PartSpec:
    """`share`: the part is ended after so much of the whole budget. `least_s`: with fewer seconds of it left, the part is not
    begun."""

    name: str  # also the file of this directory, and of its result
    share: float
    least_s: float
    needs: dict[str, str]

    def missing(self) -> list[str]:
        """The packages that it needs and that are not here."""
        return sorted({package for module, package in self.needs.items() if not _there(module)})


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that the module is of
        return False


# torch and psutil are needed by every part, and by what says on which machine it ran.
COMMON = {"torch": "torch", "psutil": "psutil", "numpy": "numpy"}
PARTS = (
    PartSpec("imports", 0.10, 10, COMMON),
    PartSpec("parity", 0.15, 30, COMMON | _TRAINER),
    PartSpec("attention", 0.07, 20, COMMON | _TRAINER),
    PartSpec("optimizer", 0.04, 10, COMMON | _TRAINER),
    PartSpec("prefixes", 0.08, 30, COMMON | _TRAINER),
    PartSpec("mfu", 0.28, 40, COMMON | _TRAINER),
    PartSpec("head", 0.06, 10, COMMON | _TRAINER),
    PartSpec("profile", 0.10, 20, COMMON | _TRAINER),
    PartSpec("transport", 0.12, 30, COMMON | _TRAINER),
)
