"""Image search by a SigLIP or CLIP checkpoint: a flat inner-product index over the corpus's pictures.

The vectors are kept beside the corpus, one file a model; a picture that is new or has changed is embedded at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import Field

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.check import Tools
from megatron_mmsr1.search.backends.image._encoder import Dtype, Encoder
from megatron_mmsr1.search.backends.image._gallery import Gallery, Picture
from megatron_mmsr1.search.backends.interfaces import ImageResult, SearchFailure
from megatron_mmsr1.search.web.decode import decode

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
        self.version = f"1:{called}:{encoder.fingerprint}:{gallery.version}"
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
        raise UsageError(f"{gallery.listing}: {picture.file}: {e}") from None


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
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as f:
            np.savez(f, files=np.array(list(vectors)), vectors=np.stack(list(vectors.values())))
        os.replace(part, file)
    except OSError as e:
        part.unlink(missing_ok=True)
        log.warning("%s cannot be written (%s): the next start embeds the pictures again", file, e.strerror)
