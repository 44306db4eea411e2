"""Image features for the policy. A frozen tower's are kept; one that is trained sees each image of an update once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_mmsr1.data.images import ImageError, ImageStore, pixel_values
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.models._policy import PolicyModel
from megatron_mmsr1.models.base import PictureRule
from megatron_mmsr1.trajectory import ImageRef


@dataclass
class _Encoded:
    """Images that went through a trained tower together, and what later goes back through it."""

    out: Tensor  # [N, ...], with the tower's graph
    grad: Tensor  # the sum of what micro-batches have given back so far
    left: int  # micro-batches that have yet to


class VisionFeatures:
    """Features of images by content. With `frozen`, the last `budget_bytes` of them stay cached and none carries gradients.

    A trained tower encodes an image where the first micro-batch of an update needs it. Micro-batches take the values alone;
    their gradients are summed, and go back through the tower once the last micro-batch that has the image has given its own.
    So the tower runs once an image, forwards and backwards, and its activations last from the first such to the last;
    packing keeps groups together, which makes that short.
    """

    def __init__(
        self, store: ImageStore, rule: PictureRule, *, frozen: bool, device: torch.device, budget_bytes: int = 2 << 30
    ) -> None:
        self.store, self.frozen, self.device = store, frozen, device
        self.rule = rule
        self.budget, self._held = budget_bytes, 0
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._needed: list[set[str]] = []  # the images of each micro-batch of the update
        self._encoded: dict[str, tuple[_Encoded, slice]] = {}  # by image: with which others, and which rows

    def begin(self, batches: Sequence[Sequence[ImageRef]]) -> None:
        """Before an update over micro-batches with these images: under these weights each is encoded once."""
        self._needed = [{i.sha256 for i in images} for images in batches]
        self._encoded = {}

    def end(self) -> None:
        """After it. Raises RunError if a micro-batch has given no gradient back for its images."""
        if self._encoded:
            raise RunError(f"the tower got no gradient for {len(self._encoded)} images of this update: their loss reached none")
        self._needed = []

    def cached(self) -> list[Tensor]:
        """Features that are kept for later steps."""
        return [*self._cache.values()]

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
        if self._needed and torch.is_grad_enabled() and not self.frozen:
            return self._trained(model, images, distinct)
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

    def _trained(self, model: PolicyModel, images: Sequence[ImageRef], distinct: list[ImageRef]) -> Tensor:
        missing = [i for i in distinct if i.sha256 not in self._encoded]
        if missing:
            out = self._through_tower(model, missing)
            new = {i.sha256 for i in missing}
            unit = _Encoded(out, torch.zeros_like(out), sum(not new.isdisjoint(needed) for needed in self._needed))
            at = 0
            for i in missing:
                n = self.rule.tokens(i.grid_thw)
                self._encoded[i.sha256] = (unit, slice(at, at + n))
                at += n
        values = torch.cat([unit.out.detach()[rows] for unit, rows in (self._encoded[i.sha256] for i in images)])
        values.requires_grad_().register_post_accumulate_grad_hook(lambda given: self._take_back(given, images))
        return values

    def _take_back(self, values: Tensor, images: Sequence[ImageRef]) -> None:
        """A micro-batch's gradient of its images: kept, and sent on where it was the last."""
        grad, values.grad = values.grad, None
        assert grad is not None
        held = [self._encoded[i.sha256] for i in images]
        for (unit, rows), part in zip(held, grad.split([rows.stop - rows.start for _, rows in held]), strict=True):
            unit.grad[rows] += part
        for unit in {id(unit): unit for unit, _ in held}.values():
            unit.left -= 1
            if not unit.left:
                self._encoded = {sha: (held, rows) for sha, (held, rows) in self._encoded.items() if held is not unit}
                torch.autograd.backward(unit.out, unit.grad)

    def _encode(self, model: PolicyModel, images: list[ImageRef]) -> dict[str, Tensor]:
        parts = self._through_tower(model, images).split([self.rule.tokens(i.grid_thw) for i in images])
        return {i.sha256: part for i, part in zip(images, parts, strict=True)}

    def _through_tower(self, model: PolicyModel, images: list[ImageRef]) -> Tensor:
        pixels = torch.cat([self._pixels(i) for i in images]).to(self.device, next(model.visual.parameters()).dtype)
        grid = torch.tensor([i.grid_thw for i in images], dtype=torch.int64, device=self.device)
        return model.encode(pixels, grid)

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
