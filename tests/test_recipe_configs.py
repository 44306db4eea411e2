"""The recipes of real models: each fits its model, its nodes and the page that describes it. None is run."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from megatron_mmsr1 import config
from megatron_mmsr1.cluster.nodes import Node
from megatron_mmsr1.cluster.placement import SEARCH, nodes_wanted, plan
from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.estimate import engine
from megatron_mmsr1.estimate.memory import largest_held
from megatron_mmsr1.estimate.parameters import layout as split
from megatron_mmsr1.models import of_checkpoint
from megatron_mmsr1.protocol import Prompts
from megatron_mmsr1.run import preflight
from megatron_mmsr1.run.preflight_layout import layout

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
recipes_docs = importlib.import_module("recipes_docs")

RECIPES = recipes_docs.recipes()
GPU_BYTES = 80e9


def with_shape(path: Path, tmp_path: Path, *more: str) -> RunConfig:
    """The recipe with a model directory that holds the published shape, and nothing else."""
    shape = recipes_docs.shape(config.load(path))
    (tmp_path / "config.json").write_text(json.dumps(shape))
    return config.load(path, [f"model.path={tmp_path}", *more])


def test_the_page_s_table_is_fresh() -> None:
    found = recipes_docs.TABLE.search(recipes_docs.PAGE.read_text())
    assert found and found[0] == recipes_docs.render(), "run: python scripts/recipes_docs.py"
    assert len(RECIPES) >= 8


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_model_divides_over_the_ranks(path: Path, tmp_path: Path) -> None:
    cfg = with_shape(path, tmp_path)
    layout(cfg)
    assert of_checkpoint(tmp_path).family.name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    Prompts.load(cfg.protocol.prompts)
    assert cfg.data.prompts_per_step % (cfg.data_parallel * cfg.algorithm.updates_per_step) == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_processes_fill_their_nodes_and_fit_their_gpus(path: Path) -> None:
    cfg = config.load(path)
    nodes = [Node(f"n{i}", f"10.0.0.{i}", 8) for i in range(nodes_wanted(cfg))]
    placed = plan(cfg, nodes)
    used = sorted((p.node, g) for p in placed.places for g in p.gpus)
    assert used == [(n, g) for n in range(len(nodes)) for g in range(8)]  # each once, none idle
    assert bool(placed.of(SEARCH)) == (cfg.searches and cfg.search.url is None)
    d = recipes_docs.sizes(cfg)
    _, gpus = recipes_docs.engine_count(cfg)
    assert largest_held(cfg, d, split(cfg, d)) < 0.7 * GPU_BYTES and engine.weights(cfg, d, gpus) < 0.5 * GPU_BYTES


def test_a_layout_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """The control: 7B's 28 attention heads do not divide over eight ranks."""
    path = ROOT / "configs" / "qwen2.5-vl-7b-fvqa.yaml"
    with pytest.raises(UsageError, match="28 attention heads do not divide over 8 ranks"):
        layout(with_shape(path, tmp_path, "megatron.tensor_parallel=8"))


def test_a_family_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["InternVLForConditionalGeneration"]}))
    with pytest.raises(UsageError, match="is a InternVLForConditionalGeneration; this trainer supports"):
        preflight.model(str(tmp_path), "model.path")


def test_the_paper_s_numbers() -> None:
    """arXiv 2506.20670: 512 prompts x 8 rollouts, mini-batches of 128, lr 2e-6, KL 0.001, 32 GPUs beside the summariser's 8."""
    cfg = config.load(ROOT / "configs" / "qwen2.5-vl-7b-fvqa.yaml")
    assert (cfg.data.prompts_per_step, cfg.data.group_size, cfg.algorithm.updates_per_step) == (512, 8, 512 // 128)
    assert (cfg.optimizer.lr, cfg.algorithm.kl_coef, cfg.train.steps) == (2e-6, 0.001, 50)
    assert nodes_wanted(cfg) * 8 == 32 and cfg.search.summarise.url
