"""Training checkpoints: megatron-core's distributed format, loadable under another parallel layout.

A checkpoint is a directory with megatron-core's shards, `extra.pt` (the loop's own state) and `manifest.json` (every file with
its size and SHA-256, and the layout that wrote it). It is written under a temporary name and renamed when complete.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_mmsr1.checkpoints import manifest
from megatron_mmsr1.checkpoints.manifest import Manifest
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.megatron import platform
from megatron_mmsr1.megatron.optimizer import restore
from megatron_mmsr1.megatron.parallel import Parallel
from megatron_mmsr1.megatron.saving import EXTRA, HostMemory, Save

if TYPE_CHECKING:
    from megatron_mmsr1.megatron.actor import MegatronActor
    from megatron_mmsr1.megatron.model import Built

REFERENCE = "reference."  # prefix of the reference's weights, which are kept once they are a step's of the run
LORA = "lora"
KIND = "distributed_optimizer"  # its state and the plain optimizer's are laid out differently; neither loads the other's


def begin(
    actor: MegatronActor,
    directory: Path,
    extra: dict[str, Any],
    beside: Callable[[Path], None] | None = None,
    memory: HostMemory | None = None,
) -> Save:
    """Collective. A checkpoint of now, which takes the place of an older one at `directory` when it is finished. `extra` holds
    plain Python values; `beside` and `memory` as `Save` has them."""
    p = actor.parallel
    state = _state(actor, is_loading=False)
    if actor.reference_step:
        state["reference"] = _reference(actor)
    state["rng"] = _rng_object(p, _rng_state())
    kept = {"extra": extra, "step": actor.step, KIND: actor.cfg.megatron.distributed_optimizer}
    kept[LORA] = _lora(actor)
    kept |= {"reference_step": actor.reference_step, "kl_coef": actor.kl_coef, "skipped_in_a_row": actor.guard.in_a_row}
    return Save(p, directory, state, kept, layout=_layout(p), step=actor.step, beside=beside, memory=memory)


def load(actor: MegatronActor, directory: Path) -> dict[str, Any]:
    """Collective. Restores model, optimizer, step, the KL's coefficient and a reference that a step has refreshed, and the
    generators if the layout is the same; returns `extra`.

    Raises RunError naming the file that is missing or torn, UsageError for a checkpoint of the other optimizer
    or of other adapters.
    """
    p = actor.parallel
    held = _verify(directory, p)
    kept = torch.load(directory / EXTRA, weights_only=True)
    wrote, here = kept.get(KIND), actor.cfg.megatron.distributed_optimizer
    if wrote is not None and wrote != here:
        raise UsageError(
            f"{directory} was written under megatron.distributed_optimizer={str(wrote).lower()}, which is {str(here).lower()} "
            f"here: set megatron.distributed_optimizer={str(wrote).lower()} to resume from it"
        )
    if kept.get(LORA) != _lora(actor):
        raise UsageError(
            f"{directory} was written under model.lora={kept.get(LORA)}, which is {_lora(actor)} here: its weights are other "
            "ones. Resume with the settings that wrote it"
        )
    if not here and bool(_spread(held.layout)) != bool(_spread(_layout(p))):
        raise UsageError(
            f"{directory} was written under another megatron.expert_parallel (or expert_tensor_parallel), which a checkpoint "
            "without megatron.distributed_optimizer does not survive: resume with the settings that wrote it"
        )
    state = _state(actor, is_loading=True)
    refreshed = int(kept.get("reference_step", 0)) if actor.reference is not None else 0
    if refreshed:
        state["reference"] = _reference(actor)
    if held.layout == _layout(p):
        state["rng"] = _rng_object(p, None)
    loaded: Any = dist_checkpointing.load(state, str(directory))
    actor.model.load_state_dict(loaded["model"])
    restore(actor.optimizer, loaded["optimizer"])
    if actor.reference is not None and refreshed:
        actor.reference.model.load_state_dict(loaded["reference"], REFERENCE)
        actor.reference.vision.clear()
    actor.reference_step = refreshed
    if actor.cfg.algorithm.kl_target is not None:
        actor.kl_coef = float(kept.get("kl_coef", actor.kl_coef))
    if "rng" in loaded:
        _set_rng_state(loaded["rng"])
    actor.guard.in_a_row = int(kept.get("skipped_in_a_row", 0))
    actor.step = kept["step"]
    return kept["extra"]


def load_weights(model: Built, directory: Path, p: Parallel) -> None:
    """Collective. The model's weights alone, of a checkpoint of any layout. Raises RunError as `load` does."""
    _verify(directory, p)
    state = {"model": model.sharded_state_dict()}
    loaded: Any = dist_checkpointing.load(state, str(directory))
    model.load_state_dict(loaded["model"])


def latest(parent: Path, p: Parallel) -> Path | None:
    """The checkpoint that `parent/latest` names, if it is there; rank 0's view, on every rank."""
    found = manifest.latest(parent) if p.rank == 0 else None
    name = p.broadcast_object(found.name if found else None)
    return parent / name if name else None


def _state(actor: MegatronActor, *, is_loading: bool) -> dict[str, Any]:
    # Without a prefix, weights of experts have the same names whether an optimizer of their own holds them or not.
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
    model = actor.model.sharded_state_dict()
    return {
        "model": model,
        "optimizer": actor.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata),
    }


def _lora(actor: MegatronActor) -> dict[str, Any] | None:
    chosen = actor.cfg.model.lora
    return None if chosen is None else chosen.model_dump()


def _reference(actor: MegatronActor) -> dict[str, Any]:
    assert actor.reference is not None
    return actor.reference.model.sharded_state_dict(REFERENCE)


def _verify(directory: Path, p: Parallel) -> Manifest:
    """Collective. RunError, on every rank, for the first file that is missing, torn or changed; each rank reads its part."""
    problem, held = "", Manifest({})
    try:
        held = manifest.verify(directory, contents=True, part=(p.rank, p.world))
    except RunError as e:
        problem = str(e)
    problems: list[str] = [""] * p.world
    dist.all_gather_object(problems, problem, group=p.objects)
    if any(problems):
        raise RunError(next(said for said in problems if said))
    return held


def _layout(p: Parallel) -> list[int]:
    experts = [p.expert_tensor, p.expert_parallel] if (p.expert_tensor, p.expert_parallel) != (p.tp_size, 1) else []
    return [p.tp_size, p.pp_size, p.dp_size, *([p.cp_size] if p.cp_size > 1 or experts else []), *experts]


def _spread(layout: list[int]) -> list[int]:
    """What a layout says of experts that are laid out unlike the rest of the model."""
    return layout[4:]


def _rng_object(p: Parallel, state: Any) -> ShardedObject:
    return ShardedObject("rng", state, (p.world,), (p.rank,))


def _rng_state() -> dict[str, Any]:
    tracker: Any = get_cuda_rng_tracker()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": platform.generator_state(),
        "tracker": tracker.get_states(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    tracker: Any = get_cuda_rng_tracker()
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    platform.set_generator_state(state["device"])
    torch.set_rng_state(state["torch"])
    tracker.set_states(state["tracker"])
