"""A Qwen2.5-VL checkpoint of a few hundred thousand parameters, for tests that need a real engine.

`write` makes a random one. With `chain` it becomes a Markov chain instead: the last text token decides the next one, so that a
test knows what the engine will say, while pictures and context still move the log-probs a little.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_mmsr1.protocol import IM_END, IMAGE_PAD, VISION_TOKENS

SPECIAL = ["<|endoftext|>", "<|im_start|>", IM_END, *VISION_TOKENS]
TAGS = [
    "<reason>", "</reason>", "<search>", "<img>", "</search>", "<text_search>", "</text_search>", "<answer>", "</answer>",
    "<information>", "</information>",
]  # fmt: skip
VOCAB = 320


def tokenizer(phrases: Sequence[str] = ()) -> Any:
    """Bytes as tokens, the tags, control tokens and `phrases` as one token each: 256 + 19 entries and the phrases."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    raw.add_tokens([AddedToken(t, normalized=False) for t in (*TAGS, *phrases)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=IM_END, pad_token="<|endoftext|>", model_max_length=4096, extra_special_tokens=SPECIAL
    )


def write(
    directory: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    hidden: int = 64,
    layers: int = 2,
    chain: list[str] | None = None,
    max_pixels: int = 28 * 28 * 64,
    phrases: Sequence[str] = (),
) -> Path:
    """Write model, tokenizer and processor. `chain` lists strings; each token of one leads to the next, an end to nothing
    certain. Returns the directory."""
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tok = tokenizer(phrases)
    ids = {t: tok.convert_tokens_to_ids(t) for t in SPECIAL}
    head = hidden // 4
    text = {
        "vocab_size": VOCAB, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False,
        "rope_theta": 1e6,
        "rope_parameters": {"rope_type": "default", "mrope_section": [head // 4, head // 8, head // 8], "rope_theta": 1e6},
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids[IM_END],
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": hidden, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1], "in_channels": 3,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids[IMAGE_PAD], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=False,
        dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        # Initialised at 0.02 every distribution would be flat and every comparison easy: sharpen it.
        for name, p in model.named_parameters():
            if p.dim() > 1 and "norm" not in name:
                p.mul_(3.0)
    if chain:
        _make_chain(model, [tok.encode(s, add_special_tokens=False) for s in chain])
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(directory)
    image = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=max_pixels)
    # A processor wants a chat template; nothing here uses it, since prompts are token ids.
    processor = Qwen2_5_VLProcessor(
        image_processor=image, tokenizer=tok, video_processor=Qwen2VLVideoProcessor(), chat_template="{{''}}"
    )
    processor.save_pretrained(directory)
    return directory


def _make_chain(model: Any, sequences: list[list[int]]) -> None:
    """Let the token's embedding pass (blocks scaled to almost nothing) and the head read off its successor."""
    import torch

    embed = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")) and "visual" not in name:
                p.mul_(0.05)
        unit = torch.nn.functional.normalize(torch.randn_like(embed), dim=-1)
        embed.copy_(unit)
        head.mul_(0.01)
        # Final RMS norm makes a unit vector of `hidden` entries sqrt(hidden) long: the logit of a link is 12.
        scale = 12.0 / embed.shape[1] ** 0.5
        for a, b in itertools.chain.from_iterable(itertools.pairwise(s) for s in sequences):
            head[b] += scale * unit[a]
