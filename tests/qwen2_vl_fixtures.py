"""A Qwen2-VL that knows Atlas's words: the shipped cold start's language model behind a random tower of the other family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from loop_fixtures import COLD_START


def write(directory: Path, *, seed: int = 0) -> Path:
    """A float32 checkpoint with the cold start's tokenizer and processor. It answers what it can without seeing."""
    import torch
    from transformers import AutoModelForImageTextToText, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    shutil.copytree(COLD_START, directory)
    source = AutoModelForImageTextToText.from_pretrained(COLD_START, dtype=torch.float32)
    old = source.config
    text = old.text_config.to_dict()
    text.pop("model_type")
    vision = {
        "depth": 2,
        "embed_dim": 64,
        "mlp_ratio": 2,
        "num_heads": 2,
        "hidden_size": old.text_config.hidden_size,
        "in_chans": 3,  # SGLang reads this name, which the released checkpoints have; transformers reads in_channels
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=old.image_token_id,
        video_token_id=old.video_token_id,
        vision_start_token_id=old.vision_start_token_id,
        vision_end_token_id=old.vision_end_token_id,
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    model.model.language_model.load_state_dict(source.model.language_model.state_dict())
    model.lm_head.load_state_dict(source.lm_head.state_dict())
    model.save_pretrained(directory)
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = directory / name
        if file.is_file():
            said = json.loads(file.read_text())
            file.write_text(json.dumps(said | ({"processor_class": "Qwen2VLProcessor"} if "processor_class" in said else {})))
    return directory
