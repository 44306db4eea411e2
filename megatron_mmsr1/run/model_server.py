"""A language model that a run starts beside its engines: SGLang again, for chat completions and with weights that stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_mmsr1.cluster.machines import Machines
from megatron_mmsr1.config import EngineConfig
from megatron_mmsr1.config.placement import ModelPlacement
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.service import Service


def model_server(role: str, wanted: ModelPlacement, name: str, machines: Machines, logs: Path, engine: EngineConfig) -> Service:
    """The model that `placement.ROLE` names, where the plan puts it; its clients call it `name`. Not started. UsageError for
    a directory without a model. `engine`: how long a start may take and when it counts as hung."""
    from megatron_mmsr1.rollout.engines.base import Launch
    from megatron_mmsr1.rollout.engines.sglang import ENGINE, SGLangSettings

    (place,) = machines.plan.of(role)
    model = Path(wanted.model or "")
    if not (model / "config.json").is_file():
        raise UsageError(f"placement.{role}.model={wanted.model} is no directory with a Hugging Face checkpoint")
    settings = SGLangSettings(
        sglang={"served_model_name": name, **wanted.sglang},
        startup_timeout_s=engine.startup_timeout_s,
        hung_after_s=engine.hung_after_s,
    )
    launch = Launch(
        model=model,
        settings=settings,
        log=logs / machines.log_name(role, place, alone=True),
        machine=machines.of(place),
        gpus=place.gpus or None,
    )
    return Service(replace(ENGINE.command(launch), name=f"the {role}"))
