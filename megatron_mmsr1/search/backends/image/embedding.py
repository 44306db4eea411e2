"""Image search by a SigLIP or CLIP checkpoint: a flat inner-product index over the corpus's pictures.

The vectors are kept beside the corpus, one file a model; a picture that is new or has changed is embedded at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image
from pydantic import Field

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.data.files import replacing
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.corpus import Gallery, Picture
from megatron_mmsr1.search.backends.interfaces import ImageResult, SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.web.pictures import decode

log = logging.getLogger(__name__)
DECODED = 1024  # side that is enough for any encoder; a large JPEG is decoded at a fraction of its cost


class Options(Section):
    model: str = Field(min_length=1, description="a checkpoint's directory, or its name on the hub")
    device: str = "cpu"
    dtype: Dtype = "float32"
    batch: int = Field(default=16, gt=0, description="pictures embedded at once when the index is made")
    local_files_only: bool = Field(default=True, description="false: the checkpoint may be downloaded")


def make(section: ImageSection, tools: Tools) -> EmbeddingIndex:
    if tools.directory is None:
        raise UsageError("search.image.backend=embedding needs search.corpus, a directory with images.jsonl")
    options = tools.options(section, Options, "search.image")
    gallery = Gallery(tools.directory, section.thumbnail_pixels)
    encoder = Encoder(options.model, options.device, options.dtype, local_files_only=options.local_files_only)
    return EmbeddingIndex(gallery, encoder, options.model, options.batch)


class EmbeddingIndex:
    """Raises UsageError that names the file of the corpus that is no picture."""

    name = "embedding"
    local = True

    def __init__(self, gallery: Gallery, encoder: Encoder, model: str, batch: int = 16):
        self._gallery, self._encoder = gallery, encoder
        self._vectors = _vectors(gallery, encoder, batch)  # float32 [N, D], length 1 each
        # Without its directory: the same checkpoint elsewhere gives the same answers.
        called = model.rstrip("/").rpartition("/")[2]
        self.version = f"2:{called}:{encoder.fingerprint}:{gallery.version}"
        self._pool = ThreadPoolExecutor(1, "embed")  # the model uses all cores that it is given

    async def search(self, image: bytes, k: int) -> Sequence[ImageResult]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._search, image, k)

    def _search(self, image: bytes, k: int) -> list[ImageResult]:
        scores = self._vectors @ self._encoder([decode(image, draft=DECODED)])[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return [self._gallery.result(int(n), float(scores[n])) for n in best]

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _vectors(gallery: Gallery, encoder: Encoder, batch: int) -> np.ndarray:
    """The pictures' vectors in order: those that are kept from before, and the missing ones, which are kept now."""
    file = gallery.listing.with_name(f"embedding-{encoder.fingerprint}.npz")
    held = _load(file)
    missing = list({p.sha256: p for p in gallery.pictures if p.sha256 not in held}.values())
    if missing:
        log.info("embedding %d of %d pictures of %s", len(missing), len(gallery.pictures), gallery.listing.parent)
    for some in batched(missing, batch):
        images = [_open(gallery, p) for p in some]
        held.update(zip((p.sha256 for p in some), encoder(images), strict=True))
    wanted = {p.sha256: held[p.sha256] for p in gallery.pictures}
    if missing or len(wanted) < len(held):
        _save(file, wanted)
    return np.stack([held[p.sha256] for p in gallery.pictures])


def _open(gallery: Gallery, picture: Picture) -> Image.Image:
    try:
        return decode(picture.file.read_bytes(), draft=DECODED)
    except (OSError, SearchFailure) as e:
        raise UsageError(f"{gallery.listing}:{picture.line}: {picture.file}: {e}") from None


def _load(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as held:
            files, vectors = held["files"], held["vectors"]
            if vectors.ndim != 2 or vectors.dtype != np.float32 or len(files) != len(vectors):
                raise ValueError("other arrays than ours")
            return dict(zip(files.tolist(), vectors, strict=True))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        log.warning("%s cannot be read (%s): the pictures are embedded again", file, type(e).__name__)
        return {}


def _save(file: Path, vectors: dict[str, np.ndarray]) -> None:
    try:
        with replacing(file) as f:
            np.savez(f, files=np.array(list(vectors)), vectors=np.stack(list(vectors.values())))
    except OSError as e:
        log.warning("%s cannot be written (%s): the next start embeds the pictures again", file, e.strerror)


# A SigLIP, CLIP or other image-text checkpoint of transformers as a function from pictures to vectors.

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
            self._processor = cast(Any, AutoImageProcessor).from_pretrained(model, local_files_only=local_files_only)
            self._model = cast(Any, AutoModel).from_pretrained(
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
