"""Pickles of pictures, as recorded image searches come."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path

from PIL import Image
from search_fixtures import emblem


def picture(seed: int) -> Image.Image:
    return emblem(random.Random(seed))


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def pickled(directory: Path, value: object, protocol: int = 4) -> Path:
    return raw(directory, pickle.dumps(value, protocol))


def raw(directory: Path, data: bytes) -> Path:
    path = directory / "cache.pkl"
    path.write_bytes(data)
    return path
