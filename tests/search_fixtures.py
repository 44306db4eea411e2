"""A small corpus and look-alike pictures for the search tests, made from nothing but a seed."""

from __future__ import annotations

import html
import io
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

# name -> capital, river, founding year. Made up, as nobody's knowledge must help.
TOWNS = {
    "zurimo": ("belato", "nofevo", 1614),
    "kadepi": ("goke", "polebe", 1445),
    "vofuna": ("zakama", "lirito", 1504),
    "midore": ("rofu", "sabeku", 1733),
    "tanelu": ("fimomo", "gadavi", 1288),
    "pesori": ("hutoga", "benuli", 1391),
}
COLOURS = [
    (200, 30, 30),
    (30, 160, 50),
    (40, 60, 200),
    (235, 215, 40),
    (240, 240, 240),
    (20, 20, 20),
    (130, 40, 150),
    (240, 130, 20),
]


def url(name: str) -> str:
    return f"http://towns.test/{name}"


def page(title: str, body: str) -> dict[str, str]:
    return {
        "id": title,
        "url": url(title),
        "title": title,
        "html": f"<html><body><h1>{html.escape(title)}</h1>{body}</body></html>",
    }


def corpus_rows() -> list[dict[str, str]]:
    names = list(TOWNS)
    rows = []
    for i, (name, (capital, river, year)) in enumerate(TOWNS.items()):
        neighbour = names[(i + 1) % len(names)]
        body = (
            f"<table><tr><th>capital</th><td>{capital}</td></tr></table>"
            f"<p>{name} is a town . the neighbour of {name} is {neighbour} . the capital of {name} is {capital} .</p>"
            f"<p>{name} was founded in {year} . the river of {name} is {river} .</p>"
        )
        rows.append(page(name, body))
    # Mentions a town and a capital more often than the town's own page does.
    rows.append(page("travel notes", "<p>" + "from zurimo to zurimo , capital after capital . " * 4 + "</p>"))
    return rows


def write_corpus(directory: Path, rows: list[dict[str, str]] | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows or corpus_rows()))
    return directory


def write_images(directory: Path, n: int, seed: int = 0) -> list[Image.Image]:
    rng = random.Random(seed)
    pictures = [emblem(rng) for _ in range(n)]
    (directory / "images").mkdir(parents=True, exist_ok=True)
    listing = []
    for i, picture in enumerate(pictures):
        picture.save(directory / "images" / f"{i}.png")
        listing.append({"id": str(i), "title": f"emblem {i}", "url": f"http://towns.test/e{i}", "file": f"images/{i}.png"})
    (directory / "images.jsonl").write_text("".join(json.dumps(r) + "\n" for r in listing))
    return pictures


def emblem(rng: random.Random) -> Image.Image:
    """56 x 56: a field, a square or a cross, a dot in each corner: eight colours, so many of them look alike."""
    y, x = np.mgrid[0:56, 0:56]
    field, charge = rng.sample(COLOURS, 2)
    pixels = np.empty((56, 56, 3), np.uint8)
    pixels[:] = field
    dx, dy, r = abs(x - rng.randint(25, 31)), abs(y - rng.randint(25, 31)), rng.uniform(12, 17)
    pixels[(dx < r) & (dy < r) if rng.random() < 0.5 else (dx < r / 3) & (dy < r) | (dy < r / 3) & (dx < r)] = charge
    for top, left in ((2, 2), (2, 48), (48, 2), (48, 48)):
        pixels[top : top + 6, left : left + 6] = rng.choice(COLOURS)
    return Image.fromarray(pixels)


def seen(picture: Image.Image, rng: random.Random, *, turn: float, crop: float, noise: float) -> Image.Image:
    """Another view: turned up to `turn` degrees, a share up to `crop` cut off, grey noise of deviation `noise`, lit +-10 %."""
    w, h = picture.size
    turned = picture.rotate(rng.uniform(-turn, turn), Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))
    side = rng.uniform(1 - crop, 1)
    left, top = rng.uniform(0, 1 - side) * w, rng.uniform(0, 1 - side) * h
    cut = turned.resize((w, h), Image.Resampling.BICUBIC, box=(left, top, left + side * w, top + side * h))
    pixels = np.asarray(cut, np.float32) * rng.uniform(0.9, 1.1)
    pixels = pixels + np.random.default_rng(rng.getrandbits(32)).normal(0, noise, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
