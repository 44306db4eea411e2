"""Multimodal rotary angles whose three rows of positions take turns over the frequencies ("interleaved")."""

# pyright: standard
# megatron.core has no types.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import MultimodalRotaryEmbedding
from torch import Tensor


def rows(section: Sequence[int]) -> list[int]:
    """Which of the rows time, height, width (0, 1, 2) each rotary frequency reads, for `mrope_section` (t, h, w).

    0 1 2 0 1 2 ... as long as height and width have frequencies left (3h and 3w of them), then time alone: the lowest
    frequencies. The rule of transformers' `Qwen3VLTextRotaryEmbedding.apply_interleaved_mrope`.
    """
    return [i % 3 if i < 3 * section[i % 3] else 0 for i in range(sum(section))]


class InterleavedRotary(MultimodalRotaryEmbedding):
    """In the place of megatron-core's, which gives each row a block of frequencies."""

    def forward(self, position_ids: Tensor, mrope_section: list[int], cp_group: Any = None) -> Tensor:
        """position_ids int64 [3, 1, T] -> angles float32 [T, 1, 1, 2 * sum(mrope_section)], whose halves are equal."""
        chosen = torch.tensor(rows(mrope_section), device=self.inv_freq.device)
        angles = position_ids.to(self.inv_freq)[chosen] * self.inv_freq[:, None, None]  # [frequencies, 1, T]
        angles = angles.permute(2, 1, 0).unsqueeze(2)
        return torch.cat((angles, angles), dim=-1)
