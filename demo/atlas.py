"""The offline default: the shipped checkpoint, its world, and a search in it. Nothing is fetched, nothing needs a key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demo.steps import Exchange
from megatron_mmsr1.config import ENGINE, ModelConfig, ProtocolConfig, SearchConfig
from megatron_mmsr1.tools import settings_for
from serving.settings import GatewaySection, ServeConfig

CHECKPOINT = Path(__file__).parent.parent / "megatron_mmsr1" / "atlas" / "checkpoints" / "tilted"
WORLD = "world"
PIXELS = 56 * 56  # four image tokens: what the model was trained on


@dataclass(slots=True, frozen=True)
class Example:
    question: str
    picture: bytes | None = None  # encoded

    def exchange(self) -> Exchange:
        return Exchange(self.question, [self.picture] if self.picture else [])


def prepare(directory: str | Path) -> ServeConfig:
    """Settings for `mmsr1 demo` without arguments. The world is built once, in `directory`, within seconds."""
    world = Path(directory) / WORLD
    if not (world / "world.json").is_file():
        from megatron_mmsr1.atlas.build import build
        from megatron_mmsr1.atlas.spec import AtlasSpec

        build(AtlasSpec(), world, model=False)
    runs = Path("runs")
    return ServeConfig(
        model=ModelConfig(path=str(CHECKPOINT), dtype="float32", min_pixels=PIXELS, max_pixels=PIXELS),
        # The limits of configs/atlas.yaml, with room for the questions before this one.
        protocol=ProtocolConfig(
            prompts="atlas", max_rounds=3, image_searches=1, text_searches=2, top_k=2,
            max_prompt_tokens=512, max_turn_tokens=24, max_response_tokens=320,
        ),
        tools={"crop": settings_for("crop", {"limit": 1})},
        engine=ENGINE.make({"sglang": {"max_total_tokens": 32768}}),
        search=SearchConfig(corpus=str(world), text_top_sentences=1),
        gateway=GatewaySection(name="atlas"),
        forced_reason="look at it",
        runs=str(runs) if runs.is_dir() else None,
    )  # fmt: skip


# (kind, attribute) of the questions that a newcomer is offered: first those that need both tools.
WANTED = (
    ("both", "capital"),
    ("both", "river"),
    ("image", "name"),
    ("text", "ruler"),
    ("picture", "charge shape"),
    ("crop", "charge colour"),
    ("known", "founded"),
)


def examples(corpus: str | None) -> list[Example]:
    """Held-out questions about a world that `mmsr1 atlas build` made; none for any other corpus."""
    if corpus is None or not (Path(corpus) / "world.json").is_file():
        return []
    import pyarrow.parquet as pq

    root = Path(corpus)
    rows = pq.read_table(root / "heldout.parquet", columns=["prompt", "images", "extra_info"]).to_pylist()
    out: list[Example] = []
    for wanted in WANTED:
        row = next((r for r in rows if (r["extra_info"]["kind"], r["extra_info"]["attribute"]) == wanted), None)
        if row is not None:
            out.append(Example(row["prompt"][0]["content"], row["images"][0]["bytes"]))
    return out
