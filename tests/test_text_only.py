"""A model that sees no pictures in the real loop: Search-R1's road. And what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import loop_fixtures as loop
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rollout_fixtures import picture
from safetensors.torch import load_file, save_file

from megatron_mmsr1 import models
from megatron_mmsr1.config import load
from megatron_mmsr1.data.images import ImageError, ImageStore
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.rollout.context import Context
from megatron_mmsr1.run import preflight


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model of the cold start alone, as a Qwen2: on text its multimodal rotary positions are plain ones."""
    path = tmp_path_factory.mktemp("reader")
    config = json.loads((loop.COLD_START / "config.json").read_text())
    text = config["text_config"] | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": config["dtype"]}
    text["rope_parameters"].pop("mrope_section")
    (path / "config.json").write_text(json.dumps(text))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(loop.COLD_START / name, path)
    weights = load_file(loop.COLD_START / "model.safetensors")
    save_file({n: w for n, w in weights.items() if "visual" not in n}, path / "model.safetensors", {"format": "pt"})
    return path


def test_a_picture_is_refused_and_so_is_a_search_by_one(reader: Path) -> None:
    cfg = load(loop.ROOT / "configs" / "atlas.yaml", [f"model.path={reader}"])
    preflight.model(cfg.model.path, "model.path")
    with pytest.raises(UsageError, match=r"sees no pictures.*protocol\.image_searches=0"):
        preflight.pixels(cfg)
    preflight.pixels(load(loop.ROOT / "configs" / "atlas.yaml", [f"model.path={reader}", "protocol.image_searches=0"]))
    with pytest.raises(ImageError, match="qwen2 see no pictures"):
        Context.open(cfg, None, ImageStore(None)).picture_tokens(picture(0, (56, 56)))


@pytest.mark.slow
def test_it_learns_from_questions_without_pictures(reader: Path, tmp_path: Path) -> None:
    world = loop.small_world(tmp_path / "world")
    for name in ("train", "heldout"):
        rows = [r for r in pq.read_table(world / f"{name}.parquet").to_pylist() if r["extra_info"]["kind"] in ("known", "text")]
        pq.write_table(pa.Table.from_pylist([r | {"images": []} for r in rows]), world / f"{name}.parquet")
    own = ("protocol.image_searches=0", "tools={}", "train.steps=2", f"model.path={reader}")
    out = tmp_path / "run"
    done = loop.mmsr1("train", "configs/atlas.yaml", *loop.settings(world, out, *own))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    steps = loop.metrics(out)
    assert len(steps) == 2 and all(s["grad_norm"] > 0 and s["search/share"] > 0 for s in steps)
    assert all(s["logprob_diff_mean"] < 1e-5 for s in steps), "the engine's log-probs are the trainer's"
    assert models.of_checkpoint(out / "model").family.name == "qwen2"
