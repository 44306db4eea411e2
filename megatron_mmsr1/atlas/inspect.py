"""`mmsr1 atlas inspect`: what a world holds, as a text table and sample questions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from megatron_mmsr1.atlas.build import SPLITS, load_world
from megatron_mmsr1.atlas.questions import TOOLS
from megatron_mmsr1.atlas.spec import KINDS
from megatron_mmsr1.errors import UsageError

_TOOL = {"": "none", "i": "image search", "t": "text search", "it": "image, then text", "c": "crop"}


def inspect(path: str | Path, *, samples: int = 1) -> str:
    """Counts of a built world and `samples` questions of each kind a split. Raises UsageError that names what is missing."""
    path = Path(path)
    world = load_world(path)
    spec = world.spec
    entities = f"{len(world.known)} known, {len(world.train)} train, {len(world.heldout)} held-out entities"
    pages, pictures = _count(path / "corpus.jsonl"), _count(path / "images.jsonl")
    lines = [f"{path}: seed {spec.seed}, {entities}", f"{pages} pages, {pictures} indexed pictures of {spec.image_size} px"]
    for split in SPLITS:
        rows = _questions(path / f"{split}.parquet")
        count = Counter(r["kind"] for r in rows)
        lines += ["", f"{split}: {len(rows)} questions", f"  {'kind':8} {'number':>6}  {'needs':16}  example"]
        for kind in KINDS:
            for i, r in enumerate([r for r in rows if r["kind"] == kind][:samples]):
                head = f"{kind:8} {count[kind]:6}  {_TOOL[TOOLS[kind]]:16}" if i == 0 else " " * 33
                lines.append(f"  {head}  {r['text']}  -> {r['gold']}")
    return "\n".join(lines)


def _questions(path: Path) -> list[dict[str, str]]:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UsageError(f"{path} is missing: build the world again")
    return [r["extra_info"] for r in pq.read_table(path, columns=["extra_info"]).to_pylist()]


def _count(path: Path) -> int:
    if not path.is_file():
        raise UsageError(f"{path} is missing: build the world again")
    return sum(1 for line in path.read_text().splitlines() if json.loads(line))
