"""Image features for the policy: each distinct image of a micro-batch encoded once; a frozen tower's features are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_mmsr1.data.images import ImageError, ImageStore, pixel_values
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.models._policy import PolicyModel
from megatron_mmsr1.models.base import PictureRule
from megatron_mmsr1.trajectory import ImageRef


class VisionFeatures:
    """Features of images by content. With `frozen`, the last `budget_bytes` of them stay cached and none carries gradients."""

    def __init__(
        self, store: ImageStore, rule: PictureRule, *, frozen: bool, device: torch.device, budget_bytes: int = 2 << 30
    ) -> None:
        self.store, self.frozen, self.device = store, frozen, device
        self.rule = rule
        self.budget, self._held = budget_bytes, 0
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def clear(self) -> None:
        """Forget what is cached: the tower's weights have changed."""
        self._cache.clear()
        self._held = 0

    def __call__(self, model: PolicyModel, images: Sequence[ImageRef]) -> Tensor | None:
        """Features [N, H] of these images in order, a merged patch a row; None without images.

        Raises RunError for an image that is not in the store or does not have the size its trajectory says.
        """
        if not images:
            return None
        distinct = list({i.sha256: i for i in images}.values())
        missing = [i for i in distinct if i.sha256 not in self._cache]
        fresh: dict[str, Tensor] = {}
        if missing:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                fresh = self._encode(model, missing)
        held = {i.sha256: fresh.get(i.sha256, self._cache.get(i.sha256)) for i in distinct}
        if self.frozen:
            self._keep(distinct, fresh)
        features: Any = [held[i.sha256] for i in images]
        return torch.cat(features)

    def _encode(self, model: PolicyModel, images: list[ImageRef]) -> dict[str, Tensor]:
        pixels = torch.cat([self._pixels(i) for i in images]).to(self.device, next(model.visual.parameters()).dtype)
        grid = torch.tensor([i.grid_thw for i in images], dtype=torch.int64, device=self.device)
        out = model.encode(pixels, grid)
        parts = out.split([self.rule.tokens(i.grid_thw) for i in images])
        return {i.sha256: part for i, part in zip(images, parts, strict=True)}

    def _pixels(self, image: ImageRef) -> Tensor:
        try:
            values = pixel_values(self.store.get(image.sha256), self.rule)
        except ImageError as e:
            raise RunError(f"image {image.sha256}: {e}") from e
        t, h, w = image.grid_thw
        if len(values) != t * h * w:
            raise RunError(f"image {image.sha256} has {len(values)} patches but its trajectory says {t}x{h}x{w}")
        return torch.from_numpy(values)

    def _keep(self, used: list[ImageRef], fresh: dict[str, Tensor]) -> None:
        for sha, part in fresh.items():
            self._cache[sha] = part.clone()  # a slice would keep the whole encoded batch alive
            self._held += part.nbytes
        for image in used:
            self._cache.move_to_end(image.sha256)
        while self._held > self.budget:
            self._held -= self._cache.popitem(last=False)[1].nbytes
