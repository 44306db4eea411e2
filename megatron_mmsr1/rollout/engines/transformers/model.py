"""A transformers model that samples turns: `base.Turn` with `generate`, log-probs included."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import LogitsProcessor, StoppingCriteria

_FILES = ("config.json", "generation_config.json")


class _Ban(LogitsProcessor):
    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores[:, self._ids] = -math.inf
        return scores


class _Watch(StoppingCriteria):
    """Tells new ids, and ends the turn when it is aborted."""

    def __init__(self, prompt: int, stop: Callable[[], bool], tell: Callable[[list[int]], None]) -> None:
        self._told, self._stop, self._tell = prompt, stop, tell

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._tell(input_ids[0, self._told :].tolist())
        self._told = input_ids.shape[1]
        return torch.full((1,), self._stop(), dtype=torch.bool, device=input_ids.device)


class Model:
    """The checkpoint in `path` on `device`, in its own dtype. Not for several threads."""

    def __init__(self, path: Path, device: str) -> None:
        self._device = torch.device(device)
        self._model = self._read(path)
        config = json.loads((path / "config.json").read_text())
        self.architecture = str((config.get("architectures") or [""])[0])
        self._pad = config.get("image_token_id")
        self._images = transformers.AutoImageProcessor.from_pretrained(path) if self._pad is not None else None

    def load(self, path: Path, config: Path) -> None:
        """Replace the weights by those in `path`, whose config is in `config`. Raises OSError, ValueError or RuntimeError and
        leaves them as they are if the files are not whole or not of this model."""
        new = self._read(path, config)
        old = {n: t.shape for n, t in self._model.state_dict().items()}
        found = {n: t.shape for n, t in new.state_dict().items()}
        if old != found:
            raise ValueError("it is a checkpoint of another model")
        self._model = new

    def _read(self, path: Path, config: Path | None = None) -> Any:
        if config is not None and config != path:
            with tempfile.TemporaryDirectory() as together:
                for f in _FILES:
                    if (config / f).is_file():
                        shutil.copyfile(config / f, Path(together) / f)
                _index(path, Path(together))
                return self._read(Path(together))
        kind = getattr(transformers, json.loads((path / "config.json").read_text())["architectures"][0])
        model, info = kind.from_pretrained(path, output_loading_info=True, local_files_only=True)
        wrong = [*info["missing_keys"], *info.get("mismatched_keys", ())]
        if wrong:
            raise ValueError(f"it lacks {len(wrong)} tensors, {wrong[0]} among them")
        return model.to(self._device).eval()

    def checksum(self) -> str:
        """SHA-256 over names, dtypes and bytes of all weights."""
        h = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            h.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            h.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return h.hexdigest()

    @torch.no_grad()
    def sample(self, turn: dict[str, Any], *, stop: Callable[[], bool], tell: Callable[[list[int]], None]) -> dict[str, Any]:
        """The turn (fields of `base.Turn`, pictures in base64) as `TransformersWire` reads it. Raises ValueError for a turn
        that the model cannot take."""
        ids, extra = self._inputs(turn)
        room = self._model.config.get_text_config().max_position_embeddings - len(ids)
        if room < 1:
            raise ValueError(f"{len(ids)} prompt tokens leave no room in the model's context")
        torch.manual_seed(turn["seed"] % 2**63)
        hot = turn["temperature"] > 0
        inputs = torch.tensor([ids], device=self._device)
        stops = list(turn["stop_ids"])
        out = self._model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            **extra,
            max_new_tokens=min(turn["max_new_tokens"], room),
            do_sample=hot,
            temperature=turn["temperature"] if hot else None,
            top_k=0 if hot else None,
            top_p=1.0 if hot else None,
            repetition_penalty=1.0,
            eos_token_id=stops or None,
            pad_token_id=stops[0] if stops else 0,
            logits_processor=[_Ban(list(turn["banned_ids"]))],
            stopping_criteria=[_Watch(len(ids), stop, tell)],
            return_dict_in_generate=True,
            output_scores=True,
        )
        new = out.sequences[0, len(ids) :].tolist()
        logprobs = [float(s[0].float().log_softmax(-1)[i]) for s, i in zip(out.scores, new, strict=True)]
        ended = bool(new) and new[-1] in stops
        finish = "stop" if ended else "aborted" if stop() else "length"
        return {"ids": new, "logprobs": logprobs, "finish": finish, "prompt_tokens": len(ids)}

    def _inputs(self, turn: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """Ids with every picture's pad expanded to its tokens, and the pictures as the model takes them."""
        ids, pictures = list(turn["ids"]), [Image.open(io.BytesIO(base64.b64decode(i))) for i in turn["images"]]
        if ids.count(self._pad) != len(pictures):
            raise ValueError(f"{ids.count(self._pad)} image pads for {len(pictures)} pictures")
        if not pictures:
            return ids, {}
        assert self._images is not None
        seen = self._images(images=pictures, return_tensors="pt").to(self._device)
        merged = self._images.merge_size**2
        counts = iter((seen["image_grid_thw"].prod(-1) // merged).tolist())
        whole = [i for x in ids for i in ([x] * next(counts) if x == self._pad else [x])]
        kinds = torch.tensor([[int(i == self._pad) for i in whole]], device=self._device)
        return whole, {**seen, "mm_token_type_ids": kinds}


def _index(parts: Path, together: Path) -> None:
    """Name the safetensors files of `parts` as one checkpoint in `together`."""
    from safetensors import safe_open

    weight_map: dict[str, str] = {}
    for f in sorted(parts.glob("*.safetensors")):
        (together / f.name).symlink_to(f.resolve())
        with safe_open(f, "pt") as handle:
            weight_map |= dict.fromkeys(handle.keys(), f.name)
    (together / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
