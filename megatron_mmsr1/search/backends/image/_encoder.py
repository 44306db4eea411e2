"""A SigLIP, CLIP or other image-text checkpoint of transformers as a function from pictures to vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from megatron_mmsr1.errors import UsageError

Dtype = Literal["float32", "bfloat16", "float16"]


class Encoder:
    """Loads the weights at once. `fingerprint`: of the weights, their type and the picture processing.

    Raises UsageError, which says what to do, where there are no weights or they are of another kind of model.
    """

    def __init__(self, model: str, device: str, dtype: Dtype, *, local_files_only: bool = True):
        import torch
        from transformers import AutoImageProcessor, AutoModel

        try:
            # Not the whole AutoProcessor: its text half would want a tokenizer that nobody uses here.
            self._processor: Any = AutoImageProcessor.from_pretrained(model, local_files_only=local_files_only)
            self._model: Any = AutoModel.from_pretrained(
                model, local_files_only=local_files_only, dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError) as e:
            why = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
            raise UsageError(
                f"search.image.options.model={model}: no checkpoint with image features can be loaded ({why}). Put one on this "
                "machine (for instance: hf download google/siglip2-base-patch16-224 --local-dir DIR) and name its directory; "
                "search.image.backend=descriptor needs none"
            ) from None
        if not hasattr(self._model, "get_image_features"):
            raise UsageError(f"search.image.options.model={model}: a {type(self._model).__name__} has no image features")
        try:
            self._model.to(device).eval()
        except (RuntimeError, AssertionError) as e:  # torch's words for a device that is not there
            raise UsageError(f"search.image.options.device={device}: {str(e).splitlines()[0][:200]}") from None
        self._device, self._dtype = device, getattr(torch, dtype)
        self.fingerprint = self._hash(dtype)

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32 [N, D] of length 1 each: the vectors of RGB pictures."""
        import torch

        with torch.inference_mode():
            inputs = self._processor(images=list(images), return_tensors="pt").to(self._device, self._dtype)
            out = self._model.get_image_features(**inputs)
            vectors = (out if isinstance(out, torch.Tensor) else out.pooler_output).float().cpu().numpy()
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _hash(self, dtype: str) -> str:
        """What was loaded, not the files it came from: the same model by name and by path is the same."""
        import torch

        digest = hashlib.sha256(f"{dtype}\n{self._processor.to_json_string()}".encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]
