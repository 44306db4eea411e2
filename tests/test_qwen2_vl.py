"""The second model family in every real part at once: SGLang serves it, the loop trains it on Atlas, the export loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import qwen2_vl_fixtures
from loop_fixtures import metrics, mmsr1, settings, small_world

from megatron_mmsr1.data.images import ImageStore, pixel_values
from megatron_mmsr1.rollout.dump import read_dump

pytestmark = pytest.mark.slow  # minutes of real loops: ./scripts/test.sh --slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen2_vl_fixtures.write(tmp_path_factory.mktemp("qwen2_vl") / "model")


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two GRPO steps, two tensor-parallel ranks."""
    out = tmp_path_factory.mktemp("run") / "run"
    world = small_world(tmp_path_factory.mktemp("world"))
    more = (f"model.path={checkpoint}", "train.steps=2", "train.eval_limit=4")
    done = mmsr1("train", "configs/atlas.yaml", *settings(world, out, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_loop_trains_it_on_the_log_probs_that_the_engine_gave(run: Path) -> None:
    rows = metrics(run)
    assert [r["step"] for r in rows] == [0, 1]
    assert sum(r["tokens"] > 0 for r in rows) >= 1, "a step without a live group teaches nothing"
    # The second step samples from what the first one made: engine and trainer agree after an update, too.
    assert all(r["logprob_diff_mean"] <= 1e-3 for r in rows if r["tokens"])


def test_the_engine_gives_transformers_log_probs(run: Path, checkpoint: Path) -> None:
    """Of the first step's trajectories, sampled by SGLang from the checkpoint as it was: multi-turn, with pictures."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from megatron_mmsr1 import models

    tokens = models.get("qwen2_vl").tokens
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    banned, pad = tokens.banned_ids(tokenizer), tokenizer.convert_tokens_to_ids(tokens.picture_pad)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    trajectories, _ = read_dump(run / "rollouts", 0)
    store = ImageStore(run / "images")
    seen = 0
    for t in [t for t in trajectories if t.images][:4]:
        ids = torch.tensor([t.token_ids])
        pixels = torch.cat([torch.from_numpy(pixel_values(store.get(i.sha256))) for i in t.images])
        grids = torch.tensor([i.grid_thw for i in t.images])
        with torch.no_grad():
            logits = model(
                input_ids=ids, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=(ids == pad).int()
            ).logits[0]
        logits[:, banned] = -torch.inf
        wanted = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
        mask = torch.tensor(t.loss_mask[1:]).bool()
        assert (torch.tensor(t.logprobs[1:])[mask] - wanted[mask]).abs().max() < 1e-4
        seen += int(mask.sum())
    assert seen > 20


def test_the_export_is_a_qwen2_vl_with_the_frozen_tower_as_it_was(run: Path, checkpoint: Path) -> None:
    import torch
    from transformers import Qwen2VLForConditionalGeneration as Model

    before = Model.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    after = Model.from_pretrained(run / "model", dtype=torch.float32).state_dict()
    assert before.keys() == after.keys()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed and all("visual" not in k for k in changed)
