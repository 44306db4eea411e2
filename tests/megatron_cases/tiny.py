"""Tiny checkpoints of each model family with a small word-level tokenizer, and conversations over it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from megatron_mmsr1.data.images import DEFAULT_RULE, ImageStore, canonicalize
from megatron_mmsr1.models import PictureRule, get
from megatron_mmsr1.trajectory import ImageRef, Trajectory

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
WORDS = 312
VOCAB = WORDS + len(SPECIAL)  # 320, so that it divides over 2 and 4 ranks
ID = {token: WORDS + i for i, token in enumerate(SPECIAL)}


def make_checkpoint(
    path: Path,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 4,
    tied: bool = False,
    family: str = "qwen2_5_vl",
    deepstack: Sequence[int] = (0, 2),
) -> Path:
    """Random weights, perturbed so that no bias or norm is at its trivial value. `deepstack`: the tower's layers whose features
    Qwen3-VL's first decoder layers take."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
    )

    vocab = {f"w{i}": i for i in range(WORDS)} | ID
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL
    ).save_pretrained(path)
    rule = get(family).pictures
    if get(family).sees_pictures:
        Qwen2VLImageProcessor(
            min_pixels=4 * rule.factor**2,
            max_pixels=64 * rule.factor**2,
            patch_size=rule.patch,
            image_mean=list(rule.mean),
            image_std=list(rule.deviation),
        ).save_pretrained(path)
    head = hidden // 4
    text = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [head // 2 - 2 * (head * 3 // 16), head * 3 // 16, head * 3 // 16],
        },
        "tie_word_embeddings": tied,
        "bos_token_id": ID["<|endoftext|>"],
        "eos_token_id": ID["<|im_end|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": hidden,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    Config, Model = Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    if family == "qwen2_vl":  # its vision config calls the tower's own width embed_dim, the language model's hidden_size
        Config, Model = Qwen2VLConfig, Qwen2VLForConditionalGeneration
        vision = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": hidden}
    if family.startswith("qwen3_vl"):
        Config, Model = Qwen3VLConfig, Qwen3VLForConditionalGeneration
        # A head size that does not follow from the width; a grid of 5 x 5 positions, so that every picture's are interpolated.
        rope = text["rope_parameters"] | {"mrope_section": [6, 3, 3], "mrope_interleaved": True}
        text |= {"head_dim": 24, "rope_parameters": rope}
        vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": hidden}
        vision |= {"num_position_embeddings": 25, "deepstack_visual_indexes": list(deepstack)}
    if family == "qwen3_vl_moe":
        Config, Model = Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
        text |= {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    if not get(family).sees_pictures:
        Config, Model = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[family]
        config = Config(**text | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}})
        return _random(Model, config, path, seed)
    config = Config(
        text_config=text,
        vision_config=vision,
        image_token_id=ID["<|image_pad|>"],
        video_token_id=ID["<|video_pad|>"],
        vision_start_token_id=ID["<|vision_start|>"],
        vision_end_token_id=ID["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    _random(Model, config, path, seed)
    if family == "qwen3_vl_moe":
        _experts_as_released(path / "model.safetensors")
    return path


def _random(kind: Any, config: Any, path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = kind(config).float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(path)
    return path


def _experts_as_released(file: Path) -> None:
    """The released checkpoints have an expert's matrices [in, out], where transformers writes [out, in]; both are read."""
    weights = load_file(file)
    for name, weight in weights.items():
        if ".experts." in name:
            weights[name] = weight.transpose(1, 2).contiguous()
    save_file(weights, file, metadata={"format": "pt"})


def picture(seed: int, width: int = 56, height: int = 56) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def conversations(
    store: ImageStore, n: int = 6, *, seed: int = 0, rule: PictureRule = DEFAULT_RULE, pictures: bool = True
) -> list[Trajectory]:
    """Multi-turn trajectories: a prompt with a picture, answers, an observation with further pictures. Lengths and sizes
    differ, some pictures are shared, one conversation has none. A token of a picture has the same place by every rule. Without
    `pictures` there are none, and the same words."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        t = Trajectory(f"p{i // 2}", f"g{i // 2}", i % 2, "q", ["a"])
        _context(t, store, rng, rule, "prompt", [] if i == 2 or not pictures else [(i // 2, 2, 2)], 4 + i)
        _say(t, rng, 5 + 2 * i)
        if i % 3 != 1:
            shown = [(10 + i, 2, 3), (i // 2, 2, 2)] if i % 3 == 0 else [(20, 4, 2)]
            _context(t, store, rng, rule, "tool", shown if pictures else [], 3)
            _say(t, rng, 7)
        if i == 0:  # three turns and three pictures
            _context(t, store, rng, rule, "tool", [], 3)
            _say(t, rng, 6)
        t.reward = float(rng.random())
        t.check(ID["<|image_pad|>"])
        out.append(t)
    return out


def groups(store: ImageStore, rule: PictureRule = DEFAULT_RULE) -> list[Trajectory]:
    """Two groups of four rollouts, each of one prompt with a picture; the first two of a group also say the same at first and
    read the same observation with a picture, the last two are equal to their ends. Both prompts begin with the same words."""
    out = []
    for g in range(2):
        for i in range(4):
            t = Trajectory(f"p{g}", f"g{g}", i, "q", ["a"])
            first, own = np.random.default_rng(g), np.random.default_rng((g, min(i, 2)))
            system = np.random.default_rng(9).integers(0, WORDS, 20).tolist()
            _context(t, store, first, rule, "prompt", [(g, 2, 3)], 12, before=system)
            if i < 2:
                _say(t, first, 9)
                _context(t, store, first, rule, "tool", [(5, 2, 2)], 12)
            _say(t, own, (4, 7, 20, 20)[i])
            t.check(ID["<|image_pad|>"])
            out.append(t)
    return out


def _context(
    t: Trajectory,
    store: ImageStore,
    rng: np.random.Generator,
    rule: PictureRule,
    role: str,
    pictures: list[tuple[int, int, int]],
    n: int,
    before: list[int] = [],  # noqa: B006 (only read)
) -> None:
    """`pictures`: seed, width and height in tokens."""
    ids, refs, f = [*before, ID["<|im_start|>"]], [], rule.factor
    for seed, width, height in pictures:
        source = picture(seed, width * f, height * f)
        image = canonicalize(source, min_pixels=4 * f * f, max_pixels=64 * f * f, rule=rule)
        refs.append(ImageRef(store.put(image), image.grid_thw))
        ids += [ID["<|vision_start|>"], *[ID["<|image_pad|>"]] * refs[-1].tokens(), ID["<|vision_end|>"]]
    ids += rng.integers(0, WORDS, n).tolist()
    t.append(role, ids, "", images=refs)


def _say(t: Trajectory, rng: np.random.Generator, n: int) -> None:
    ids = [*rng.integers(0, WORDS, n).tolist(), ID["<|im_end|>"]]
    t.append("assistant", ids, "", logprobs=(-rng.random(n + 1)).tolist(), weight_versions=[0] * (n + 1))
