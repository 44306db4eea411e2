"""Every model family keeps the contract, a broken one is caught by its rule, and the documented example works as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoint
from contracts import model_family as contract
from doc_examples import write_examples
from rollout_fixtures import PROMPTS, picture

from megatron_mmsr1 import models
from megatron_mmsr1.config import load
from megatron_mmsr1.data.images import CanonicalImage, ImageStore, canonicalize
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.models import Family, PictureRule
from megatron_mmsr1.models.base import CLIP_MEAN, CLIP_STD
from megatron_mmsr1.protocol import IMAGE, data, text
from megatron_mmsr1.rollout.context import Context

QWEN = models.get("qwen2_5_vl")


@pytest.mark.parametrize("name", models.REGISTRY.names())
def test_every_family_keeps_the_contract(name: str) -> None:
    contract.check(models.get(name))
    assert models.get(name).name == name


def test_there_are_six() -> None:
    assert {"qwen2", "qwen2_5_vl", "qwen2_vl", "qwen3", "qwen3_vl", "qwen3_vl_moe"} <= set(models.REGISTRY.names())


@dataclass(frozen=True)
class Backwards(Family):
    """Counts every token again from the end, so that a longer conversation moves its beginning."""

    def positions(self, token_ids: Any, pad_id: int, grids: Any, merge: int) -> np.ndarray:
        QWEN.positions(token_ids, pad_id, grids, merge)
        return np.broadcast_to(np.arange(len(token_ids))[::-1], (3, len(token_ids))).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Restless(PictureRule):
    def resize(self, height: int, width: int, *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        PictureRule.resize(self, height, width, min_pixels=min_pixels, max_pixels=max_pixels)
        return (56, 84) if width == 56 else (84, 56)


BROKEN: list[tuple[Family, Callable[..., None], str]] = [
    (replace(QWEN, tokens=replace(QWEN.tokens, turn_end="<|image_pad|>")), contract.tokens_are_distinct, "two meanings"),
    (replace(QWEN, tokens=replace(QWEN.tokens, picture_pad="[IMG]")), contract.tokens_are_distinct, "would speak"),
    (replace(QWEN, architectures=()), contract.tokens_are_distinct, "no architecture"),
    (replace(QWEN, pictures=Restless()), contract.picture_sizes_settle, "never settles"),
    (Backwards("b", ("B",), "m:P", QWEN.tokens), contract.positions_fit_the_tokens, "count up"),
    (Backwards("b", ("B",), "m:P", QWEN.tokens), contract.positions_of_a_prefix_are_its_prefix, "move when more follow"),
]


@pytest.mark.parametrize(("family", "rule", "said"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_family_is_caught(family: Family, rule: Callable[..., None], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        rule(family)


# ------------------------------------------------------------------------------------------------- found by the checkpoint
def _checkpoint(directory: Path, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_the_architecture_finds_the_family_and_its_patch_sizes(name: str, tmp_path: Path) -> None:
    vision = {"patch_size": 16, "spatial_merge_size": 4, "temporal_patch_size": 1}
    path = _checkpoint(tmp_path / "m", architectures=list(models.get(name).architectures), vision_config=vision)
    files = models.of_checkpoint(path)
    assert files.family.name == name
    assert (files.pictures.patch, files.pictures.merge, files.pictures.temporal) == (16, 4, 1)


def test_an_unknown_architecture_is_told_what_is_supported_and_where_to_add_one(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path / "m", architectures=["LlamaForCausalLM"])
    with pytest.raises(UsageError, match=r"model.path.*LlamaForCausalLM.*Qwen2VL.*Qwen2_5_VL.*model_family"):
        models.of_checkpoint(path)
    with pytest.raises(UsageError, match=r"LlamaForCausalLM.*model.family=qwen2_vl is for Qwen2VLFor"):
        models.of_checkpoint(path, "qwen2_vl")
    with pytest.raises(UsageError, match=r"model.family=qwen25_vl: no such model_family; did you mean qwen2_5_vl"):
        models.of_checkpoint(path, "qwen25_vl")


def test_a_file_that_is_no_family_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "half.py"
    file.write_text("class Half:\n    name = 'half'\n\nFAMILY = Half()\n")
    with pytest.raises(UsageError, match=r"half.py breaks the contract.*no method picture_rule.*no architectures"):
        models.get(f"{file}:FAMILY")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", [0.5, 0.5, 0.5]),
        ("image_std", [1, 1, 1]),
        ("patch_size", 16),
        ("merge_size", 1),
        ("temporal_patch_size", 1),
    ],
)
def test_a_processor_that_makes_other_numbers_of_a_picture_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    """The engine would use it: everything would run, on features that the trainer does not see."""
    path = _checkpoint(tmp_path / "m", architectures=["Qwen2VLForConditionalGeneration"])
    good = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "patch_size": 14, "merge_size": 2}
    files = models.of_checkpoint(path)
    with pytest.raises(UsageError, match="no preprocessor_config"):
        files.check_processor()
    for wrapped in (False, True):  # transformers 5 writes both into one file
        said = good | {key: value}
        (path / "preprocessor_config.json").write_text(json.dumps({"image_processor": good} if wrapped else good))
        files.check_processor()
        (path / "preprocessor_config.json").write_text(json.dumps({"image_processor": said} if wrapped else said))
        with pytest.raises(UsageError, match=f"preprocessor_config.json has {key}"):
            files.check_processor()


def test_layers_that_take_the_tower_s_features_must_stand_with_it(tmp_path: Path) -> None:
    """Qwen3-VL-8B's 36 layers: the first three do."""
    vision = {"deepstack_visual_indexes": [8, 16, 24]}
    path = _checkpoint(tmp_path / "m", architectures=["Qwen3VLForConditionalGeneration"], vision_config=vision)
    files = models.of_checkpoint(path)
    assert files.family.layers_beside_tower(files.config) == 3
    other = models.of_checkpoint(_checkpoint(path, architectures=["Qwen2VLForConditionalGeneration"]))
    assert other.family.layers_beside_tower(other.config) == 0


def test_a_group_that_the_family_does_not_have_is_named_with_those_it_has(tmp_path: Path) -> None:
    files = models.of_checkpoint(_checkpoint(tmp_path / "m", architectures=["Qwen2VLForConditionalGeneration"]))
    files.check_freeze(["tower", "language"])
    with pytest.raises(UsageError, match=r"model.freeze: qwen2_vl has no eyes; there are tower, merger, language, embeddings"):
        files.check_freeze(["tower", "eyes"])


# ----------------------------------------------------------------------------------------------------- the documented example
def picture_of(context: Context) -> CanonicalImage:
    return canonicalize(picture(1), min_pixels=56 * 56, max_pixels=56 * 56, rule=context.pictures)


def test_the_example_works_without_a_change_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page says: two files of one's own, no existing one. The settings are read, the family is found, pictures and prompts
    are made by its rule."""
    paths = write_examples("model_family.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    _checkpoint(tmp_path / "my-model", architectures=["Qwen2_5_VLForConditionalGeneration"])
    cfg = load(paths["my_run.yaml"])
    files = models.of_checkpoint(cfg.model.path, cfg.model.family)
    contract.check(files.family)
    assert files.family.name == "my_family" and files.pictures.mean == (0.5, 0.5, 0.5)
    assert cfg.model.frozen == {"tower", "embeddings"}
    tokenizer = tiny_checkpoint.tokenizer()
    tokenizer.add_tokens(["<picture>"], special_tokens=True)
    context = Context.build(
        tokenizer,
        prompts=PROMPTS,
        limits=cfg.protocol,
        rollout=cfg.rollout,
        model=cfg.model,
        search=None,
        store=ImageStore(None),
        family=files.family,
        pictures=files.pictures,
    )
    # Its picture is written in its own tokens, and a page that writes them shows no picture.
    shown = context.message([text("look "), IMAGE, data("<picture> <|vision_end|>")], [picture_of(context)])
    assert shown.ids.count(context.pad_id) == 4 and shown.ids.count(tokenizer.convert_tokens_to_ids("<picture>")) == 1
    assert context.stop_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
