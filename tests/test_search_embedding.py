"""Image search by embeddings, with random checkpoints of real transformers classes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from search_fixtures import png, write_corpus, write_images

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.image.embedding import EmbeddingIndex, Encoder
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.server.compose import make
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger
from megatron_mmsr1.trajectory import ToolStatus

KINDS = ("clip", "siglip")
TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
    "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 8,
}  # fmt: skip


def checkpoint(directory: Path, kind: str, seed: int = 0) -> Path:
    import torch
    import transformers as t

    torch.manual_seed(seed)
    side = VISION["image_size"]
    if kind == "clip":
        model = t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24))
        t.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(directory)
    else:
        model = t.SiglipModel(t.SiglipConfig(text_config=TEXT, vision_config=VISION))
        t.SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image.Image]:
    write_corpus(tmp_path)
    return write_images(tmp_path, 12)


def opened(directory: Path, model: Path | str, **options: Any) -> EmbeddingIndex:
    image = {"backend": "embedding", "options": {"model": str(model), **options}}
    cfg = SearchConfig.model_validate({"corpus": str(directory), "image": image})
    return make("image", cfg.image, Tools(cfg, Metrics(), Ledger(None, cfg.budget)))


class Counted:
    """How many pictures the encoder was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.pictures = 0
        inner = Encoder.__call__

        def counting(encoder: Encoder, images: Any) -> np.ndarray:
            self.pictures += len(images)
            return inner(encoder, images)

        monkeypatch.setattr(Encoder, "__call__", counting)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_picture_finds_itself_first(
    tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image], kind: str
) -> None:
    index = opened(tmp_path, models[kind], batch=5)
    for n, picture in enumerate(pictures):
        hits = await index.search(png(picture), 3)
        assert len(hits) == 3
        assert (hits[0].title, hits[0].url) == (f"emblem {n}", f"http://towns.test/e{n}")
        assert hits[0].score == pytest.approx(1, abs=1e-4)
        assert hits[0].score > hits[1].score >= hits[2].score
        assert hits[0].image is not None
    assert len(await index.search(png(pictures[0]), 50)) == 12
    await index.close()


async def test_vectors_are_those_of_the_model(tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image]) -> None:
    import torch
    from transformers import AutoImageProcessor, CLIPModel

    model: Any = CLIPModel.from_pretrained(models["clip"])
    inputs = AutoImageProcessor.from_pretrained(models["clip"])(images=pictures[:2], return_tensors="pt")
    with torch.inference_mode():
        theirs = model.get_image_features(**inputs).pooler_output
    theirs = torch.nn.functional.normalize(theirs, dim=-1)
    index = opened(tmp_path, models["clip"])
    hits = {h.title: h.score for h in await index.search(png(pictures[0]), 12)}
    assert hits["emblem 1"] == pytest.approx(float(theirs[0] @ theirs[1]), abs=1e-5)
    await index.close()


async def test_the_index_is_kept_and_follows_its_pictures(
    tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Counted(monkeypatch)
    first = opened(tmp_path, models["siglip"])
    assert count.pictures == 12
    again = opened(tmp_path, models["siglip"])
    assert count.pictures == 12
    assert again.version == first.version

    new = Image.new("RGB", (56, 56), "teal")
    new.save(tmp_path / "images" / "7.png")
    changed = opened(tmp_path, models["siglip"])
    assert count.pictures == 13
    assert changed.version != first.version
    assert (await changed.search(png(new), 1))[0].title == "emblem 7"
    assert (await changed.search(png(pictures[7]), 1))[0].score < 0.9999
    # What no picture of the corpus has any more is dropped.
    (kept,) = tmp_path.glob("embedding-*.npz")
    with np.load(kept, allow_pickle=False) as held:
        assert len(held["files"]) == len(held["vectors"]) == 12
    for index in (first, again, changed):
        await index.close()


def test_another_model_or_type_has_an_index_and_a_version_of_its_own(
    tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = checkpoint(tmp_path_factory.mktemp("elsewhere") / models["clip"].name, "clip")
    another = checkpoint(tmp_path_factory.mktemp("another") / models["clip"].name, "clip", seed=1)
    one = opened(tmp_path, models["clip"]).version
    assert opened(tmp_path, elsewhere).version == one  # the same weights under the same name, in another place
    assert str(tmp_path_factory.getbasetemp()) not in one
    others = {opened(tmp_path, another).version, opened(tmp_path, models["clip"], dtype="bfloat16").version}
    assert len(others | {one}) == 3
    assert len(list(tmp_path.glob("embedding-*.npz"))) == 3


def test_a_torn_index_is_made_again_and_said(
    tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path, models["clip"])
    (kept,) = tmp_path.glob("embedding-*.npz")
    whole = kept.read_bytes()
    hostile = np.array([{"a": 1}], dtype=object)
    for n, damage in enumerate((b"", b"garbage", whole[: len(whole) // 2], None)):
        if damage is None:
            np.savez(kept, files=hostile, vectors=hostile)  # arrays of objects are pickles: never loaded
        else:
            kept.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            opened(tmp_path, models["clip"])
        assert len([r for r in caplog.records if "embedded again" in r.getMessage()]) == n + 1
        assert kept.read_bytes() == whole
    assert list(tmp_path.glob(".*.part")) == []


def test_a_corpus_that_cannot_be_written_is_searched_all_the_same(
    tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path, models["clip"])
    (kept,) = tmp_path.glob("embedding-*.npz")
    kept.unlink()
    kept.mkdir()  # no file can take its place, for root neither
    opened(tmp_path, models["clip"])
    assert list(tmp_path.glob(".*.part")) == []
    assert "cannot be written" in caplog.text


async def test_what_is_no_picture_is_refused(tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image]) -> None:
    index = opened(tmp_path, models["clip"])
    with pytest.raises(SearchFailure) as failed:
        await index.search(b"no picture", 3)
    assert failed.value.status is ToolStatus.REFUSED
    await index.close()
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"3\.png"):
        opened(tmp_path, models["clip"])
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(UsageError, match=r"images\.jsonl:4"):
        opened(tmp_path, models["clip"])


def test_missing_weights_say_what_to_do(
    tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for model in (tmp_path / "nowhere", "nobody/no-such-model", tmp_path / "images"):
        with pytest.raises(UsageError, match=r"search\.image\.options\.model.*descriptor needs none"):
            opened(tmp_path, model)
    with pytest.raises(UsageError, match=r"search\.image\.options\.model"):
        make("image", SearchConfig.model_validate({"image": {"backend": "embedding"}}).image, _tools(tmp_path))
    with pytest.raises(UsageError, match=r"search\.image\.options\.device"):
        opened(tmp_path, models["clip"], device="nonsense")


def test_a_model_without_image_features_is_no_use(tmp_path: Path, pictures: list[Image.Image]) -> None:
    import transformers as t

    directory = tmp_path / "vit"
    t.ViTModel(t.ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        directory
    )
    t.ViTImageProcessor().save_pretrained(directory)
    with pytest.raises(UsageError, match="ViTModel has no image features"):
        opened(tmp_path, directory)


def test_weights_that_are_a_pickle_are_not_loaded(tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image]) -> None:
    import torch

    directory = tmp_path / "pickled"
    directory.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (directory / name).write_bytes((models["clip"] / name).read_bytes())
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"search\.image\.options\.model"):
        opened(tmp_path, directory)


def test_the_module_loads_without_torch() -> None:
    code = "import sys, megatron_mmsr1.search.backends.image.embedding; print({'torch', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_a_corpus_file_outside_of_its_directory_is_refused(
    tmp_path: Path, models: dict[str, Path], pictures: list[Image.Image]
) -> None:
    row = {"id": "x", "title": "t", "url": "u", "file": "../../etc/passwd"}
    (tmp_path / "images.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match="outside"):
        opened(tmp_path, models["clip"])


def _tools(directory: Path) -> Tools:
    cfg = SearchConfig(corpus=str(directory))
    return Tools(cfg, Metrics(), Ledger(None, cfg.budget))
