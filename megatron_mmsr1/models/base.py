"""What a model family says of itself that data and rollouts need: its tokens, its pictures, its positions.

No megatron here: the trainer's half is named by `trainer` and imported when a model is built."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_mmsr1.data.resize import smart_resize
from megatron_mmsr1.errors import UsageError

# The statistics of CLIP's pre-training data (OPENAI_CLIP_MEAN and OPENAI_CLIP_STD), red, green, blue.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens that stand for pictures and end a turn; each is one entry of the tokenizer's vocabulary."""

    picture_start: str
    picture_pad: str
    picture_end: str
    turn_end: str
    more_vision: tuple[str, ...] = ()  # further tokens that announce pixels, as of videos

    @property
    def picture(self) -> str:
        """One picture in the engine's view of a text: a single pad between its marks."""
        return f"{self.picture_start}{self.picture_pad}{self.picture_end}"

    @property
    def vision(self) -> tuple[str, ...]:
        """What no rollout may sample and every log-prob excludes from its normaliser: it would announce pixels that do not
        exist, and the next forward pass would fail on the mismatch."""
        return (self.picture_start, self.picture_end, self.picture_pad, *self.more_vision)

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of those that are written `<name>`, for `protocol.clean`, which knows `<|name|>` already: other people's
        text must not become a picture or the end of a turn."""
        return tuple(t[1:-1] for t in (*self.vision, self.turn_end) if not t.startswith("<|"))

    def id_of(self, token: str, tokenizer: Any, where: str) -> int:
        """The id of one of these tokens. UsageError, naming the checkpoint `where`, if the tokenizer has it not as one."""
        found = tokenizer.encode(token, add_special_tokens=False)
        if len(found) != 1:
            raise UsageError(f"{where}: its tokenizer has no token {token}; does it belong to this model family?")
        return found[0]

    def banned_ids(self, tokenizer: Any) -> list[int]:
        """The ids of `vision` that this tokenizer has, ascending."""
        ids = (tokenizer.convert_tokens_to_ids(t) for t in self.vision)
        unknown = getattr(tokenizer, "unk_token_id", None)
        return sorted({i for i in ids if isinstance(i, int) and i >= 0 and i != unknown})


@dataclass(frozen=True, slots=True)
class PictureRule:
    """How pixels become the tower's input. A patch has `patch` x `patch` pixels; `merge` x `merge` patches become one token; a
    still picture is repeated `temporal` times. Values are (x / 255 - mean) / deviation a channel."""

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    mean: tuple[float, float, float] = CLIP_MEAN
    deviation: tuple[float, float, float] = CLIP_STD
    max_aspect: float = 200

    @property
    def factor(self) -> int:
        """Both sides of a canonical picture are multiples of this many pixels."""
        return self.patch * self.merge

    def resize(self, height: int, width: int, *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        """(height, width) that the family's own image processor gives a picture. ImageError for one it does not take."""
        return smart_resize(
            height, width, factor=self.factor, min_pixels=min_pixels, max_pixels=max_pixels, max_aspect=self.max_aspect
        )

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Tokens of a picture of `grid` (time, height, width) patches."""
        return grid[0] * grid[1] * grid[2] // self.merge**2


@dataclass(frozen=True)
class Family:
    """A model family. One file `models/NAME/__init__.py` (or a person's own) holds it as `FAMILY`; a variant is made by
    `dataclasses.replace` or a subclass that overrides a method.

    `architectures` are the names in config.json's `architectures` that it answers to; `trainer` is `module:attribute` of its
    heavy half, a provider of megatron-bridge that builds a `models._policy.PolicyModel`; `freeze_groups` are what
    `model.freeze` may name, in that model's words. A family without a tower (`sees_pictures`) has `pictures` that nobody asks.
    """

    name: str
    architectures: tuple[str, ...]
    trainer: str
    tokens: SpecialTokens
    pictures: PictureRule = PictureRule()
    freeze_groups: tuple[str, ...] = ("tower", "merger", "language", "embeddings")
    sees_pictures: bool = True

    def picture_rule(self, config: dict[str, Any]) -> PictureRule:
        """The rule of one checkpoint, whose config.json is `config`: the family's, with the checkpoint's patch sizes."""
        vision: dict[str, Any] = config.get("vision_config") or {}
        return replace(
            self.pictures,
            patch=int(vision.get("patch_size", self.pictures.patch)),
            merge=int(vision.get("spatial_merge_size", self.pictures.merge)),
            temporal=int(vision.get("temporal_patch_size", self.pictures.temporal)),
        )

    def layers_beside_tower(self, config: dict[str, Any]) -> int:
        """How many of the first decoder layers must stand on the tower's pipeline stage, in a checkpoint whose config.json is
        `config`: those that take features of the tower."""
        return 0

    def positions(
        self, token_ids: Sequence[int] | np.ndarray, pad_id: int, grids: Sequence[tuple[int, int, int]], merge: int
    ) -> np.ndarray:
        """Rotary positions int64 [3, T] of a whole conversation in the trainer's view (every picture as its full run of
        `pad_id`). The positions of a prefix are the prefix of the positions. ValueError unless pads and `grids` agree."""
        raise NotImplementedError(f"the model family {self.name} does not say its positions")

    def provider(self) -> type[Any]:
        """The heavy half. UsageError names what cannot be imported; megatron must be importable (`megatron.platform`)."""
        module, _, attribute = self.trainer.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as e:
            raise UsageError(f"model.family={self.name}: its trainer {self.trainer} cannot be imported ({e})") from e
