"""In which order a run draws the rows of its data."""

from __future__ import annotations

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.sampler import ResumableSampler
from megatron_mmsr1.shaping.curriculum import Curriculum, places


def sampler_of(cfg: RunConfig, data: PromptDataset) -> ResumableSampler:
    """By the run's seed, and its curriculum where it has one. UsageError where the column is missing or no number."""
    c = cfg.shaping.curriculum
    curriculum = Curriculum(places(data.numbers(c.column)), c.start, c.steps) if c.column is not None else None
    return ResumableSampler(len(data), seed=cfg.seed, shuffle=cfg.data.shuffle, curriculum=curriculum)
