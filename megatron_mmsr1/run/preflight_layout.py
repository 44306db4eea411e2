"""Whether a model's config.json fits `megatron:`, before anything loads. megatron/provider.py checks again what it builds."""

from __future__ import annotations

from megatron_mmsr1.cluster import fits
from megatron_mmsr1.config import RunConfig


def layout(cfg: RunConfig) -> None:
    """Raises UsageError as `fits.check`."""
    from megatron_mmsr1.models import of_checkpoint

    files = of_checkpoint(cfg.model.path, cfg.model.family)
    fits.check(cfg.megatron, files.config, first=files.family.layers_beside_tower(files.config))
    fits.check_lora(cfg.model.lora, files.config)
