"""The `slurm:` section: how `mmsr1 slurm submit` asks for nodes, and what runs on them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from megatron_mmsr1.config.section import Affects, Section

# Lines that the script's own handling of signals, logs and restarts stands on.
_OURS = frozenset(
    {"signal", "requeue", "no-requeue", "open-mode", "output", "o", "array", "a", "dependency", "d"}
    | {"job-name", "J", "nodes", "N", "chdir", "D"}
)


def _words(value: str | list[str] | None) -> str | list[str] | None:
    for text in [value] if isinstance(value, str) else value or []:
        if not re.fullmatch(r"[^\s\"'\\]+", text):
            raise ValueError("must be one word, without quotes")
    return value


class ContainerSection(Section):
    """In what the processes of a job run."""

    AFFECTS = Affects.MACHINE

    runtime: Literal["none", "pyxis", "apptainer"] = "none"
    image: str | None = Field(default=None, description="pyxis: a .sqsh file or a registry's name; apptainer: a .sif file")
    mounts: list[str] = Field(
        default_factory=list, description="SOURCE:TARGET[:ro]; the directory of submission is always mounted"
    )

    _one_word = field_validator("mounts")(_words)

    @model_validator(mode="after")
    def _has_image(self) -> ContainerSection:
        if (self.runtime == "none") != (self.image is None):
            raise ValueError(f"runtime={self.runtime} and image={self.image}: give both, or neither")
        return self


class SlurmConfig(Section):
    AFFECTS = Affects.MACHINE

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = Field(default=None, description="limit, e.g. 24:00:00 or 2-12; default: the partition's")
    gpus_per_node: int | None = Field(default=None, ge=0, description="default: as many as `placement` names, or none")
    gres: str | None = Field(default=None, description="in the place of gpus_per_node, e.g. gpu:h100:8")
    cpus_per_node: int | None = Field(default=None, gt=0, description="default: the partition's, one as a rule")
    memory: str | None = Field(default=None, description="of a node, e.g. 500G; 0: all of it")
    exclusive: bool = Field(default=False, description="nodes that no other job is on")
    exclude: list[str] = Field(default_factory=list, description="nodes that the job must not get")
    options: list[str] = Field(default_factory=list, description="further options of sbatch, e.g. [--reservation=big]")
    stop_before_s: int = Field(
        default=300, gt=0, description="before the time limit: the step in progress is finished and a checkpoint written"
    )
    requeues: int = Field(default=50, ge=0, description="how often a job goes back into the queue at most")
    container: ContainerSection = ContainerSection()
    command: list[str] = Field(
        default_factory=list, description="how mmsr1 is started on the nodes; default: as here, in a container: mmsr1"
    )
    setup: list[str] = Field(default_factory=list, description="lines of bash before all else, e.g. [module load cuda]")
    env: dict[str, str] = Field(default_factory=dict, description="variables of the job, e.g. {NCCL_IB_HCA: mlx5}; no secrets")
    env_file: str | None = Field(
        default=None, description="NAME=value lines with API keys, readable by their owner only; read on the node"
    )

    _one_word = field_validator("partition", "account", "qos", "time", "gres", "memory", "exclude")(_words)

    @field_validator("options")
    @classmethod
    def _not_ours(cls, options: list[str]) -> list[str]:
        for text in options:
            if not re.fullmatch(r"--?[a-zA-Z][^\n]*", text):
                raise ValueError("write an option as sbatch has it, e.g. --reservation=big")
            if (name := re.split(r"[ =]", text.lstrip("-"), maxsplit=1)[0]) in _OURS:
                raise ValueError(f"--{name} is set by mmsr1 itself")
        return options

    @model_validator(mode="after")
    def _fits(self) -> SlurmConfig:
        if self.gres and self.gpus_per_node is not None:
            raise ValueError("gres and gpus_per_node both say how many GPUs: give one of them")
        for name in self.env:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"env: {name!r} is no name of a variable")
        return self
