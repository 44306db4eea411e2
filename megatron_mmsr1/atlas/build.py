"""`mmsr1 atlas build` and `mmsr1 atlas inspect`: a world as files, the same road that real data takes.

out/train.parquet, out/heldout.parquet   questions in veRL's (FVQA's) columns
out/corpus.jsonl                         pages: {"id", "url", "title", "html"}
out/images.jsonl, out/images/*.png       the picture index: {"id", "title", "url", "file"}
out/world.json                           the spec and every entity, for baselines and for reading
out/model/                               a tiny Qwen2.5-VL checkpoint with random weights
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_mmsr1.atlas.canvas import draw_canvas
from megatron_mmsr1.atlas.model import ModelShape, save_model
from megatron_mmsr1.atlas.pages import corpus
from megatron_mmsr1.atlas.picture import Emblem, draw, png, random_view
from megatron_mmsr1.atlas.questions import Question, questions
from megatron_mmsr1.atlas.spec import AtlasSpec, require_same
from megatron_mmsr1.atlas.world import Entity, World, make_world
from megatron_mmsr1.data.files import write_text
from megatron_mmsr1.errors import UsageError

SPLITS = ("train", "heldout")


def build(spec: AtlasSpec, out: Path, *, model: bool = True, shape: ModelShape | None = None) -> World:
    """Write a world into `out`, which is made if need be. The same spec writes the same bytes.

    Raises UsageError if `out` holds a world of another spec: its questions and its corpus would belong to two worlds.
    """
    world = make_world(spec)
    out.mkdir(parents=True, exist_ok=True)
    before = out / "world.json"
    if before.exists():
        require_same(out, json.loads(before.read_text())["spec"], spec)
    for split in SPLITS:
        _write_questions(world, split, out / f"{split}.parquet")
    _write_jsonl(out / "corpus.jsonl", ({"id": p.id, "url": p.url, "title": p.title, "html": p.html} for p in corpus(world)))
    (out / "images").mkdir(exist_ok=True)
    rows = []
    for e in world.entities:
        file = f"images/{e.id}.png"
        (out / file).write_bytes(index_picture(spec, e))
        rows.append({"id": e.id, "title": e.name, "url": e.url, "file": file})
    _write_jsonl(out / "images.jsonl", rows)
    if model:
        save_model(out / "model", seed=spec.seed, shape=shape)
    # Last: its presence says that the rest is complete.
    data = {"spec": spec.model_dump(mode="json")}
    data |= {s: [e.to_dict() for e in es] for s, es in (("known", world.known), *((s, world.split(s)) for s in SPLITS))}
    write_text(before, json.dumps(data, indent=1) + "\n")
    return world


def load_world(path: Path) -> World:
    """The world that a directory of `build` holds. Raises UsageError if there is none."""
    file = path / "world.json"
    if not file.is_file():
        raise UsageError(f"no world at {path}: `mmsr1 atlas build {path}` makes one")
    data = json.loads(file.read_text())
    split = {name: [_entity(e) for e in data[name]] for name in ("known", *SPLITS)}
    return World(AtlasSpec.model_validate(data["spec"]), **split)


def index_picture(spec: AtlasSpec, e: Entity) -> bytes:
    """PNG: the view of an entity that image search knows. No question shows it."""
    rng = random.Random(f"atlas/view/index/{e.id}/{spec.seed}")
    return png(draw(e.emblem, random_view(rng, spec.views), spec.image_size))


def question_pictures(spec: AtlasSpec, e: Entity) -> list[bytes]:
    """PNGs: the views of an entity that questions show."""
    rng = random.Random(f"atlas/view/question/{e.id}/{spec.seed}")
    return [png(draw(e.emblem, random_view(rng, spec.views), spec.image_size)) for _ in range(spec.question_views)]


def canvas_picture(spec: AtlasSpec, e: Entity, corner: int, rng: random.Random) -> bytes:
    """PNG: the entity's emblem, small, in that corner of a canvas."""
    return png(draw_canvas(e.emblem, random_view(rng, spec.views), corner, spec.canvas_size))


def _write_questions(world: World, split: str, path: Path) -> None:
    """FVQA's columns, `image_urls` null in every row as there, then what else the protocol allows."""
    from megatron_mmsr1.data import parquet

    rows = questions(world, split)
    views = {e.id: question_pictures(world.spec, e) for e in world.entities}
    rng = random.Random(f"atlas/views/{split}/{world.spec.seed}")
    columns = {
        "prompt": [{"content": "string", "role": "string"}],
        "images": [{"bytes": "binary", "path": "null"}],
        "reward_model": {"candidate_answers": "string", "ground_truth": "string", "style": "string"},
        "data_source": "string",
        "image_urls": "null",
        "extra_info": {k: "int64" if k in ("phrasing", "corner") else "string" for k in rows[0].extra()},
        "data_id": "string",
        "category": "string",
    }
    by_id = {e.id: e for e in world.entities}

    def picture(q: Question) -> bytes:
        return canvas_picture(world.spec, by_id[q.entity], q.corner, rng) if q.kind == "crop" else rng.choice(views[q.entity])

    table = [_row(q, picture(q), f"atlas-{world.spec.seed}-{split}-{i}", split) for i, q in enumerate(rows)]
    parquet.write(path, table, columns)


def _row(q: Question, image: bytes, data_id: str, split: str) -> dict[str, Any]:
    return {
        "prompt": [{"content": q.text, "role": "user"}],
        "images": [{"bytes": image, "path": None}],
        "reward_model": {"candidate_answers": json.dumps([q.gold]), "ground_truth": q.gold, "style": "rule"},
        "data_source": f"mmsearch_r1/atlas_{split}",
        "image_urls": None,
        "extra_info": q.extra(),
        "data_id": data_id,
        "category": q.category,
    }


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def _entity(d: dict[str, Any]) -> Entity:
    d = {k: v for k, v in d.items() if k != "url"}
    emblem = d.pop("emblem")
    return Entity(**d, emblem=Emblem(**{**emblem, "dots": tuple(emblem["dots"])}))
