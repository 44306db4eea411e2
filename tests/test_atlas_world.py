"""The Atlas world: same seed, same bytes; splits that share nothing; questions that exactly the tools of their kind answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from megatron_mmsr1.atlas.build import build, index_picture, load_world, question_pictures
from megatron_mmsr1.atlas.inspect import inspect
from megatron_mmsr1.atlas.names import reserved
from megatron_mmsr1.atlas.pages import corpus
from megatron_mmsr1.atlas.picture import COLOURS, Emblem, View, draw
from megatron_mmsr1.atlas.questions import PHRASINGS, TOOLS, gold, phrasings, questions
from megatron_mmsr1.atlas.spec import KINDS, AtlasSpec, load_spec
from megatron_mmsr1.atlas.turns import query
from megatron_mmsr1.atlas.world import make_world
from megatron_mmsr1.errors import UsageError

SMALL: dict[str, Any] = {"entities": 24, "known": 4, "train_questions": 120, "heldout_questions": 60, "noise_pages": 10}
HARD: dict[str, Any] = {"near_duplicate_pictures": 6, "homonyms": 6, "stale": 6, "contradictory": 6, "injected": 6}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("atlas") / "world"
    build(AtlasSpec(**SMALL), out)
    return out


@pytest.mark.long
def test_the_same_spec_writes_the_same_bytes(built: Path, tmp_path: Path) -> None:
    build(AtlasSpec(**SMALL), tmp_path / "again")
    files = sorted(p.relative_to(built) for p in built.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert {Path("train.parquet"), Path("corpus.jsonl"), Path("model/model.safetensors")} <= set(files)
    assert [f for f in files if (built / f).read_bytes() != (tmp_path / "again" / f).read_bytes()] == []


def test_another_seed_is_another_world_with_the_same_known_entities(built: Path) -> None:
    a, b = load_world(built), make_world(AtlasSpec(seed=1, **SMALL))
    assert a.known == b.known
    assert [e.name for e in a.train] != [e.name for e in b.train]


def test_a_world_reads_back_as_it_was_built(built: Path) -> None:
    assert load_world(built) == make_world(AtlasSpec(**SMALL))


def test_a_directory_keeps_one_world(built: Path) -> None:
    with pytest.raises(UsageError, match="another spec"):
        build(AtlasSpec(seed=5, **SMALL), built)


def test_columns_are_those_of_fvqa(built: Path) -> None:
    schema = pq.read_schema(built / "train.parquet")
    assert schema.names[:5] == ["prompt", "images", "reward_model", "data_source", "image_urls"]
    assert str(schema.field("prompt").type) == "list<element: struct<content: string, role: string>>"
    assert str(schema.field("images").type) == "list<element: struct<bytes: binary, path: null>>"
    assert [f.name for f in schema.field("reward_model").type] == ["candidate_answers", "ground_truth", "style"]
    assert str(schema.field("image_urls").type) == "null"
    row = pq.read_table(built / "train.parquet").to_pylist()[0]
    assert row["prompt"][0]["role"] == "user" and "mmsearch_r1/atlas" in row["data_source"]
    assert row["reward_model"]["ground_truth"] in json.loads(row["reward_model"]["candidate_answers"])
    assert row["images"][0]["bytes"].startswith(b"\x89PNG")


def test_the_mix_is_exact(built: Path) -> None:
    kinds = [r["kind"] for r in pq.read_table(built / "heldout.parquet")["extra_info"].to_pylist()]
    assert {k: kinds.count(k) for k in KINDS} == dict.fromkeys(KINDS, 10)


@pytest.mark.parametrize("knobs", [{}, HARD])
def test_splits_share_no_entity_no_name_and_no_phrasing(knobs: dict[str, Any]) -> None:
    world = make_world(AtlasSpec(**SMALL, **knobs))
    names = [{n for e in split for n in (e.name, *e.facts.values())} for split in (world.train, world.heldout)]
    assert not {n for n in names[0] & names[1] if not n.isdigit()}
    train, heldout = questions(world, "train"), questions(world, "heldout")
    unknown = {q.entity for q in train if q.kind != "known"}
    assert not unknown & {q.entity for q in heldout}
    assert not {(q.attribute, q.phrasing) for q in train} & {(q.attribute, q.phrasing) for q in heldout}
    for attribute, forms in PHRASINGS.items():
        assert len(phrasings(attribute, "train")) >= 3
        assert len(set(forms)) == len(forms)
        assert phrasings(attribute, "train") + phrasings(attribute, "heldout") == phrasings(attribute, "all")


def test_names_of_worlds_are_reserved() -> None:
    world = make_world(AtlasSpec())
    assert all(reserved(e.name) for e in world.entities)
    assert all(re.fullmatch(r"([bdfgklmnprstvz][aeiou]){2,3}", e.name) for e in world.entities)
    assert len({e.name for e in world.entities}) == 316


@pytest.mark.parametrize("knobs", [{}, {"near_duplicate_pictures": 6, "homonyms": 6, "injected": 6}])
def test_exactly_the_promised_tools_answer(knobs: dict[str, Any]) -> None:
    """Walk the corpus: the fact stands in one sentence, with the name, and nowhere the question's own text gives it away."""
    world = make_world(AtlasSpec(**SMALL, **knobs))
    by_id = {e.id: e for e in world.entities}
    pages = {p.id: p for p in corpus(world)}
    for q in questions(world, "train") + questions(world, "heldout"):
        e = by_id[q.entity]
        assert q.gold == gold(e, q.attribute) and q.gold not in q.text
        named = re.search(rf"\b{e.name}\b", q.text) is not None
        assert named == (q.kind in ("known", "text"))
        if "t" in TOOLS[q.kind]:
            about = [s for s in re.findall(r"<p>(.*?)</p>", pages[e.id].html) for s in s.split(" .") if q.gold in s]
            assert about and all(e.name in s for s in about)
            others = [p for p in pages.values() if p.title == e.name and p.id != e.id and p.id in by_id]
            assert not others, "a name that is asked about leads to one page"
        if q.kind in ("picture", "crop"):
            assert q.gold in (e.emblem.field, e.emblem.charge, e.emblem.shape)


def test_knobs_make_their_trouble() -> None:
    spec = AtlasSpec(**SMALL, **HARD)
    world = make_world(spec)
    names = [e.name for e in world.train + world.heldout]
    assert len(names) - len(set(names)) == 6
    assert len({e.url for e in world.entities}) == len(world.entities)
    ids = [p.id for p in corpus(world)]
    assert [sum(i.endswith(t) for i in ids) for t in ("-stale", "-contradictory", "-injected")] == [6, 6, 6]
    assert any("&lt;|im_start|&gt;" in p.html for p in corpus(world))
    asked = [q for q in questions(world, "train") if q.kind in ("text", "both")]
    assert not {q.entity for q in asked} & {e.id for e in world.entities if e.homonym}


def test_search_finds_what_the_questions_need(built: Path) -> None:
    """By the search server's own backends: BM25, the extractive summary of one sentence, the picture index."""
    bm25 = pytest.importorskip("megatron_mmsr1.search.backends.text.bm25")
    from megatron_mmsr1.search.backends.corpus import Corpus, Gallery
    from megatron_mmsr1.search.backends.image import descriptor
    from megatron_mmsr1.search.backends.summarise import extractive
    from megatron_mmsr1.search.web.pictures import decode

    world = load_world(built)
    corpus_ = Corpus.load(built)
    text, image = bm25.Bm25(corpus_), descriptor.DescriptorIndex(Gallery(built, 512))
    by_id = {e.id: e for e in world.entities}
    for q in questions(world, "heldout"):
        e = by_id[q.entity]
        if "t" in TOOLS[q.kind]:
            best = corpus_.pages[text.rank(query(q, name_known=True), 1)[0][0]]
            assert best.url == e.url
            assert q.gold in extractive.summarise(query(q, name_known=True), best.text, 1)
    for e in world.entities:
        for view in question_pictures(world.spec, e):
            assert world.entities[image.rank(descriptor.grid(decode(view)), 1)[0][0]] == e


def test_views_differ_and_show_the_same_emblem() -> None:
    world = make_world(AtlasSpec(**SMALL))
    for e in world.entities:
        views = [index_picture(world.spec, e), *question_pictures(world.spec, e)]
        assert len(set(views)) == len(views)


def test_an_emblem_is_drawn_as_it_says() -> None:
    """The middle of a square charge, an empty edge and each dot, in two views."""
    emblem = Emblem("red", "blue", "square", ("white", "black", "green", "yellow"), 13.0, 1.0, 2.0)
    for view in (View(), View(rotation=4, zoom=1.02, dx=0.5, dy=-0.5)):
        picture = draw(emblem, view)
        assert picture.shape == (56, 56, 3) and picture.dtype == np.uint8
        at = {(29, 30): "blue", (4, 30): "red", (28, 4): "red"}
        at |= {(7, 7): "white", (48, 7): "black", (7, 48): "green", (48, 48): "yellow"}
        assert {xy: tuple(map(int, picture[xy[1], xy[0]])) for xy in at} == {xy: COLOURS[c] for xy, c in at.items()}


def test_a_larger_picture_is_the_same_picture() -> None:
    emblem = make_world(AtlasSpec(**SMALL)).train[0].emblem
    small, large = draw(emblem), draw(emblem, size=112)
    assert (large.reshape(56, 2, 56, 2, 3)[:, 0, :, 0] == small).all(-1).mean() > 0.95


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"entitys": 3}, "entitys"),
        ({"image_size": 60}, "image_size=60"),
        ({"canvas_size": 600}, "canvas_size=600"),
        ({"mix": {"known": 1.0}}, "mix"),
        ({"homonyms": 400}, "homonyms=400"),
    ],
)
def test_a_wrong_knob_is_named(knobs: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_spec(None, **knobs)


def test_inspect_shows_every_kind(built: Path, tmp_path: Path) -> None:
    shown = inspect(built)
    assert all(f"  {k} " in shown for k in KINDS) and "held-out" in shown
    with pytest.raises(UsageError, match="no world"):
        inspect(tmp_path)
