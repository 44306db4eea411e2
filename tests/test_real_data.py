"""The five real FVQA rows, as `mmsr1 train` meets them: their pictures at their own sizes, their questions, a real step."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import tiny_checkpoint
from conftest import CHECKPOINTS
from loop_fixtures import metrics, mmsr1, settings, small_world

from megatron_mmsr1.data.dataset import PromptDataset
from megatron_mmsr1.data.images import ImageStore, canonicalize
from megatron_mmsr1.rollout.dump import read_dump
from megatron_mmsr1.trajectory import ToolStatus, Trajectory

MINI = Path(os.environ.get("MMSR1_SHARED") or Path(__file__).parents[2] / "shared") / "data" / "mmsearch_r1_mini.parquet"
pytestmark = pytest.mark.skipif(not MINI.exists(), reason="the five real FVQA rows are not here (MMSR1_SHARED)")

# Patches (time, height, width) of each row's picture. By Qwen2-VL's rule each side goes to the nearest multiple of 28 pixels,
# two patches of 14: 384x512 -> 392x504, 800x531 -> 812x532, 800x600 -> 812x588 (twice), 533x800 -> 532x812.
GRIDS = [(1, 36, 28), (1, 38, 58), (1, 42, 58), (1, 42, 58), (1, 58, 38)]
MIN_PIXELS, MAX_PIXELS = 3136, 28 * 28 * 1024  # the checkpoint's own: none of the five is shrunk
GROUP = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step on two tensor-parallel ranks, of a model that searches twice as often as it answers. It earns no reward, so the
    KL term keeps its groups in the step, and the entropy term gives them a gradient."""
    root = tmp_path_factory.mktemp("real")
    world, out = small_world(root / "world"), root / "run"
    model = tiny_checkpoint.write(root / "model", **CHECKPOINTS["chain"], max_pixels=MAX_PIXELS)  # type: ignore[arg-type]
    real = settings(
        world,
        out,
        f"data.train=[{MINI}]",
        "data.heldout=[]",
        f"model.path={model}",
        f"model.min_pixels={MIN_PIXELS}",
        f"model.max_pixels={MAX_PIXELS}",
        "protocol.prompts=mmsearch",
        "protocol.max_prompt_tokens=2048",
        "protocol.max_response_tokens=1536",
        "data.prompts_per_step=5",
        f"data.group_size={GROUP}",
        "algorithm.kl_coef=0.01",
        "algorithm.entropy_coef=0.01",
        "train.steps=1",
    )
    done = mmsr1("train", "configs/atlas.yaml", *real)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def groups(run: Path) -> list[list[Trajectory]]:
    """The trajectories of each row, in the file's order."""
    done, _ = read_dump(run / "rollouts", 0)
    return [[t for t in done if t.prompt_id == f"{MINI.stem}:{row}"] for row in range(5)]


def test_every_row_is_rolled_out(groups: list[list[Trajectory]]) -> None:
    data = PromptDataset([MINI])
    for row, group in enumerate(groups):
        assert len(group) == GROUP
        for t in group:
            assert t.question == data[row].question and t.golden_answers == data[row].golden_answers
            assert sum(t.loss_mask) > 0, t.extra
            assert not t.infrastructure_failure and t.reward is not None


def test_pictures_keep_their_size_but_for_the_resize_rule(run: Path, groups: list[list[Trajectory]]) -> None:
    data, store = PromptDataset([MINI]), ImageStore(run / "images")
    for row, group in enumerate(groups):
        image = canonicalize(data[row].images[0], min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
        assert image.grid_thw == GRIDS[row]
        for t in group:
            assert t.images[0].grid_thw == GRIDS[row]
            assert store.get(t.images[0].sha256) == image.png


def test_real_pictures_are_searched_for(groups: list[list[Trajectory]]) -> None:
    """What comes back from the small world is beside the point, and is there: titles, and pictures after the first."""
    calls = [(t, c) for group in groups for t in group for c in t.tool_calls]
    assert {c.kind for _, c in calls} == {"image", "text"}
    assert {c.status for _, c in calls} <= {ToolStatus.OK, ToolStatus.EMPTY}
    assert any(len(t.images) > 1 for t, c in calls if c.kind == "image")


def test_the_prompt_holds_a_pad_for_each_merged_patch(run: Path, groups: list[list[Trajectory]]) -> None:
    from transformers import AutoTokenizer

    pad = AutoTokenizer.from_pretrained(run / "model").convert_tokens_to_ids("<|image_pad|>")
    for row, group in enumerate(groups):
        for t in group:
            t.check(pad)
            prompt = t.turns[0]
            assert t.token_ids[prompt.start : prompt.end].count(pad) == math.prod(GRIDS[row]) // 4


def test_the_step_trains_on_all_of_it(run: Path, groups: list[list[Trajectory]]) -> None:
    (row,) = metrics(run)
    assert row["tokens"] == sum(len(t) for group in groups for t in group)
    assert row["loss_tokens"] == sum(sum(t.loss_mask) for group in groups for t in group)
    assert row["trained_share"] == 1.0
    assert all(math.isfinite(row[k]) for k in ("loss", "grad_norm", "entropy"))
    assert row["grad_norm"] > 0 and row["logprob_diff_mean"] <= 1e-3
    assert (run / "model" / "model.safetensors").is_file()
