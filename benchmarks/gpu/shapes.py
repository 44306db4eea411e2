"""Model shapes as checkpoint directories without weights: the config.json of a released model, and a tokenizer of the few
tokens that the trainer asks for by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "shapes"
NAMES = ("qwen2_vl_2b", "qwen2_5_vl_3b")  # the smaller first
# The ids of the released Qwen2-VL and Qwen2.5-VL tokenizers.
TOKENS = {
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
_TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 640,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}
_TINY_FIRST = 600  # the id of the first of TOKENS in a tiny model


def write(name: str, directory: Path, *, tiny: bool, text: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write config.json and tokenizer of a shape, or of a tiny model of its family, whose language model `text` may size;
    returns the config."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    config = json.loads((HERE / f"{name}.json").read_text())
    ids = dict(TOKENS)
    if tiny:
        config, ids = _shrunk(config, ids, _TINY_TEXT | (text or {}))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    words = {f"w{i}": i for i in range(max(ids.values()) + 1) if i not in ids.values()}  # a vocabulary may have no holes
    raw = Tokenizer(models.WordLevel(words | ids, unk_token="w0"))
    known = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", additional_special_tokens=list(ids))
    known.save_pretrained(directory)
    return config


def _shrunk(config: dict[str, Any], ids: dict[str, int], sizes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    ids = {token: _TINY_FIRST + i for i, token in enumerate(ids)}
    hidden = sizes["hidden_size"]
    vision: dict[str, Any] = config["vision_config"] | {"depth": 2, "num_heads": 2}
    if config["model_type"] == "qwen2_vl":  # whose vision config calls the language model's width hidden_size
        vision |= {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": hidden}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": hidden, "fullatt_block_indexes": [1]}
    text = config["text_config"] | sizes | {"bos_token_id": 0, "eos_token_id": ids["<|im_end|>"]}
    return config | {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": text,
        "vision_config": vision,
    }, ids


def ordinary_ids(config: dict[str, Any]) -> int:
    """How many ids from 0 on are words, none of which announces a picture."""
    return _TINY_FIRST if config["text_config"]["vocab_size"] == _TINY_TEXT["vocab_size"] else min(TOKENS.values())
