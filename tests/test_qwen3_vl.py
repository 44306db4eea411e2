"""Qwen3-VL in a real SGLang: what it samples has transformers' log-probs, which tests/test_megatron.py holds the trainer to."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_cases import tiny
from rollout_fixtures import picture

from megatron_mmsr1 import models
from megatron_mmsr1.data.images import canonicalize, pixel_values
from megatron_mmsr1.procs.service import Service
from megatron_mmsr1.rollout import engines
from megatron_mmsr1.rollout.engine import EngineClient
from megatron_mmsr1.rollout.engines.base import Launch
from megatron_mmsr1.rollout.engines.sglang.wire import SGLangWire
from megatron_mmsr1.trajectory import expand_pads

pytestmark = pytest.mark.slow  # a server each: ./scripts/test.sh --slow

START, PAD, END = (tiny.ID[t] for t in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"))
BANNED = sorted(tiny.ID.values())


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
async def test_the_engine_gives_transformers_log_probs(family: str, tmp_path: Path) -> None:
    """Over three pictures of odd grids, 64 sampled tokens. SGLang 0.5.21 expects three layers of DeepStack of the mixtures."""
    path = tiny.make_checkpoint(tmp_path / "model", family=family, deepstack=(0, 1, 2))
    _processor(path)
    rule = models.get(family).pictures
    limits: Any = {"min_pixels": 4 * rule.factor**2, "max_pixels": 64 * rule.factor**2, "rule": rule}
    images = [canonicalize(picture(9, size), **limits) for size in ((64, 96), (130, 101), (300, 90))]
    words = random.Random(0).choices(range(tiny.WORDS), k=60)
    ids = [*words[:20], START, PAD, END, *words[20:40], START, PAD, END, *words[40:50], START, PAD, END, *words[50:]]
    kind = engines.get("sglang")
    launch = Launch(model=path, settings=kind.Settings(), log=tmp_path / "engine.log")
    with Service(kind.command(launch)).start() as running:
        client = EngineClient([running.url], SGLangWire(), timeout_s=120, retries=0, stop_ids=[])
        said = await client.generate(
            ids, [i.png for i in images], max_new_tokens=64, temperature=1.0, seed=1, banned_ids=BANNED
        )
        await client.close()
    whole = torch.tensor([expand_pads(ids, PAD, [rule.tokens(i.grid_thw) for i in images]) + said.token_ids])
    assert said.prompt_tokens == whole.shape[1] - 64
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(
            input_ids=whole,
            pixel_values=torch.cat([torch.from_numpy(pixel_values(i.png, rule)) for i in images]),
            image_grid_thw=torch.tensor([i.grid_thw for i in images]),
            mm_token_type_ids=(whole == PAD).int(),
        ).logits[0]
    logits[:, BANNED] = -torch.inf
    wanted = logits.log_softmax(-1)[-65:-1].gather(1, whole[0, -64:, None]).squeeze(1)
    assert (torch.tensor(said.logprobs) - wanted).abs().max() < 1e-4


def _processor(path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    Qwen3VLProcessor(
        image_processor=AutoImageProcessor.from_pretrained(path),
        tokenizer=AutoTokenizer.from_pretrained(path),
        video_processor=Qwen3VLVideoProcessor(),
        chat_template="{{''}}",  # it wants one; prompts are token ids
    ).save_pretrained(path)
