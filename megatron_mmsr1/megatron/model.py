"""A checkpoint of any family (models/) as a model on this rank, through megatron-bridge's weight conversion."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

from megatron.bridge import AutoBridge
from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
from transformers import AutoConfig

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.megatron import hf, lora, offload, platform, rope
from megatron_mmsr1.megatron.provider import configure
from megatron_mmsr1.models import ModelFiles, of_checkpoint
from megatron_mmsr1.models._policy import PolicyModel


@dataclasses.dataclass
class Built:
    """A model on this rank: `chunks` as megatron-core's schedules take them, several with virtual pipeline parallelism, `cores`
    the same without wrappers, the bridge for export."""

    bridge: AutoBridge
    chunks: list[Any]
    cores: list[PolicyModel]
    files: ModelFiles

    @property
    def core(self) -> PolicyModel:
        """The first chunk: the one with the tower, on the first stage."""
        return self.cores[0]

    @property
    def config(self) -> Any:
        return self.core.config

    def state_dict(self) -> dict[str, Any]:
        """By chunk."""
        return {str(i): core.state_dict() for i, core in enumerate(self.cores)}

    def sharded_state_dict(self, prefix: str = "") -> dict[str, Any]:
        """By chunk, for a checkpoint of any layout."""
        # A new dict each time: megatron-core writes its process groups into it.
        kind = "fully_reshardable"
        return {
            str(i): core.sharded_state_dict(prefix=prefix, metadata={"distrib_optim_sharding_type": kind})
            for i, core in enumerate(self.cores)
        }

    def load_state_dict(self, state: dict[str, Any], prefix: str = "") -> None:
        """What the two above gave."""
        for i, core in enumerate(self.cores):
            core.load_state_dict({name.removeprefix(prefix): value for name, value in state[str(i)].items()})


def build(
    cfg: RunConfig,
    path: Path,
    *,
    trainable: bool,
    key: str = "model.path",
    random_weights: bool = False,
    adapters: bool = True,
) -> Built:
    """Load the Hugging Face checkpoint at `path` onto this rank's share of the model.

    A trainable model is wrapped for data parallelism; one that is not takes no gradients. Without `adapters` it has none,
    whatever `model.lora` says. With `random_weights` only the checkpoint's config.json is read, and weights are drawn as it
    says: for measurements of speed.
    Raises UsageError for a path that is no checkpoint of a known family or does not divide over the ranks, RunError for a
    missing or damaged shard or weight.
    """
    files = of_checkpoint(path, cfg.model.family, key)
    files.check_freeze(cfg.model.frozen)
    names = set() if random_weights else hf.weight_names(path)
    bridge, provider = described(cfg, files, path, config_only=random_weights)
    provider.perform_initialization = random_weights

    def before_wrapping(chunks: list[Any]) -> list[Any]:  # what is wrapped takes gradients
        if not random_weights:
            _load(bridge, chunks, names, path)
        for chunk in chunks:
            chunk.freeze(cfg.model.frozen)
            if cfg.model.lora is not None and adapters:
                lora.add(chunk, cfg.model.lora, cfg.seed)
            if trainable and not any(p.requires_grad for p in chunk.parameters()):
                raise UsageError("model.freeze leaves a pipeline stage nothing to train: freeze less, or use fewer stages")
        return chunks

    provider.register_pre_wrap_hook(before_wrapping)
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=cfg.megatron.distributed_optimizer,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=cfg.megatron.overlap_grad_reduce,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars and parameter counts, from every rank
        chunks = provider.provide_distributed_model(
            ddp_config=ddp,
            wrap_with_ddp=trainable,
            use_cpu_initialization=not platform.has_cuda(),
            fp16=False,
            bf16=provider.bf16,
        )
    cores = [unwrapped(chunk) for chunk in chunks]
    rope.install()
    if cfg.megatron.offload.activations and trainable:
        for each in cores:
            offload.install(each.decoder, provider.hidden_size)
    core = cores[0]
    core.config.apply_rope_fusion = True
    # The loss has divided by the global token count already: no token count reaches this.
    core.config.finalize_model_grads_func = lambda models, _, **kwargs: finalize_model_grads(models, None, **kwargs)
    if trainable and cfg.megatron.overlap_grad_reduce:  # a bucket is sent once, after the last micro-batch has added to it
        syncs: Any = [chunk.no_sync for chunk in chunks]
        core.config.no_sync_func = syncs if len(syncs) > 1 else syncs[0]
    if not trainable:
        for core in cores:
            core.requires_grad_(False)
    return Built(bridge, chunks, cores, files)


def described(cfg: RunConfig, files: ModelFiles, path: str | Path, *, config_only: bool) -> tuple[AutoBridge, Any]:
    """The bridge of a checkpoint, and its description ("provider") of the model as this config wants it built. `config_only`:
    nothing but config.json is read. Raises UsageError as `provider.configure`."""
    kind = files.family.provider()  # first: a family that megatron-bridge does not know is made known to it here
    if config_only:
        bridge = AutoBridge.from_hf_config(AutoConfig.from_pretrained(path))
    else:
        bridge = AutoBridge.from_hf_pretrained(str(path))
    base: Any = bridge.to_megatron_provider(load_weights=False)
    provider = kind(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base) if f.init})
    configure(provider, cfg, files)
    return bridge, provider


def _load(bridge: AutoBridge, chunks: list[Any], names: set[str], path: Path) -> None:
    """Weights into the bare model. megatron-bridge only warns about a missing one, so they are compared first."""
    wanted: set[str] = set()
    for task in bridge.get_conversion_tasks(chunks):
        if task is not None:
            source = task.mapping.hf_param
            wanted |= {source} if isinstance(source, str) else set(source.values())
    missing = sorted(n for n in wanted if n not in names)
    if missing:
        raise RunError(f"{path} lacks {len(missing)} weights, first {missing[0]}: download or export the checkpoint again")
    try:
        bridge.load_hf_weights(chunks)
    except ValueError as e:
        raise UsageError(f"{path}: its weights do not have the shapes that its config.json says: {e}") from e


def unwrapped(module: Any) -> PolicyModel:
    """The model in a chunk of `Built.chunks`."""
    while not isinstance(module, PolicyModel):
        module = module.module
    return module
