"""A tiny checkpoint in the Qwen2.5-VL architecture, random weights by seed, that transformers and SGLang load unmodified."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from megatron_mmsr1.atlas.tokenizer import CHAT_TEMPLATE, MAX_LENGTH, VOCAB_SIZE, build_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 1024


class ModelShape(BaseModel):
    """The defaults are the smallest shape that was seen to learn the task. Untied embeddings matter: tied ones copy badly."""

    model_config = ConfigDict(extra="forbid")

    hidden: int = Field(default=128, gt=0)
    layers: int = Field(default=4, gt=0)
    head_dim: int = Field(default=32, gt=0)
    kv_heads: int = Field(default=2, gt=0)
    intermediate: int = Field(default=320, gt=0)
    vision_hidden: int = Field(default=64, ge=3 * 4**2, description="at least 48, see `_see_colours`")
    vision_layers: int = Field(default=2, gt=0)
    vision_init: float = Field(default=0.06, gt=0, description="deviation of the vision tower's initial weights")
    patch_gain: float = Field(default=16.0, gt=0, description="how loudly the patch embedding speaks, see `_see_colours`")


def mrope_section(head_dim: int) -> list[int]:
    """Rotary pairs for time, height and width, in Qwen2.5-VL's proportion 2:3:3. Sums to head_dim / 2."""
    half = head_dim // 2
    side = (half - half // 4) // 2
    return [half - 2 * side, side, side]


def model_config(shape: ModelShape) -> Qwen2_5_VLConfig:
    from transformers import Qwen2_5_VLConfig

    ids = build_tokenizer().get_vocab()
    bos, eos = ids["<|endoftext|>"], ids["<|im_end|>"]
    text = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // shape.head_dim,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": False,
        "rope_theta": 1e4,
        "rope_parameters": {"rope_type": "default", "mrope_section": mrope_section(shape.head_dim), "rope_theta": 1e4},
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": bos,
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_hidden * 2,
        "num_heads": shape.vision_hidden // 32,
        "out_hidden_size": shape.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [shape.vision_layers - 1],
        "in_channels": 3,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        dtype="float32",
    )


def new_model(shape: ModelShape, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Fresh fp32 weights; the same seed gives the same ones, and the caller's random state is left alone."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(model_config(shape))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if ".visual." in f".{name}" and p.ndim > 1:
                    p.normal_(0.0, shape.vision_init)
            _see_colours(model, shape)
    return model


def _see_colours(model: Qwen2_5_VLForConditionalGeneration, shape: ModelShape) -> None:
    """Start the patch embedding from the mean colours of a patch's 4 x 4 cells: 48 outputs, the others start at 0.

    It stands for the eyes that a real checkpoint has from pre-training. The gain makes Adam's steps small beside the weights:
    with 1,176 inputs that move together, a step of 1e-3 on weights of 0.02 changes a feature by more than its size, and what
    lies behind never learns to read it. The tower normalises right after, so the gain changes nothing else.
    """
    weight = model.model.visual.patch_embed.proj.weight  # [hidden, 3, 2, 14, 14]
    weight.zero_()
    edges = [0, 4, 7, 10, 14]
    row = 0
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            for channel in range(3):
                pixels = 2 * (bottom - top) * (right - left)
                weight[row, channel, :, top:bottom, left:right] = shape.patch_gain / pixels
                row += 1


def save_model(out: Path, *, seed: int = 0, shape: ModelShape | None = None, tokens: Sequence[str] = ()) -> None:
    """Write a Hugging Face checkpoint directory: weights, tokenizer (`tokens`: `more` of `build_tokenizer`), image and video
    processor, chat template."""
    from transformers import GenerationConfig, Qwen2_5_VLProcessor, Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one file of a few megabytes
    model, tokenizer = new_model(shape or ModelShape(), seed), build_tokenizer(tokens)
    out.mkdir(parents=True, exist_ok=True)
    eos, pad = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    model.generation_config = GenerationConfig(bos_token_id=pad, eos_token_id=[eos, pad], pad_token_id=pad)
    model.save_pretrained(out)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(out)
    tokenizer.save_pretrained(out)
    # AutoTokenizer must read tokenizer.json as it stands: Qwen's own class would rebuild its pre-tokenizer.
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
