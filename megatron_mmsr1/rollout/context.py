"""What every trajectory of a run shares: tokenizer and its special ids, prompts, limits, tools, the image store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_mmsr1 import protocol
from megatron_mmsr1.config import ModelConfig, ProtocolConfig, RolloutConfig, RunConfig
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.data.decode import stored_size
from megatron_mmsr1.data.images import CanonicalImage, ImageError, ImageStore, canonical_size, canonicalize
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.models import Family, PictureRule, of_checkpoint
from megatron_mmsr1.protocol import Prompts, Segment, TurnProtocol
from megatron_mmsr1.tools import Picture, Search, Tool, configured
from megatron_mmsr1.trajectory import ImageRef, expand_pads

if TYPE_CHECKING:
    from megatron_mmsr1.search.client import SearchClient

# A larger picture is decoded and resized in a thread, so that the event loop goes on serving the others.
INLINE_IMAGE_BYTES = 32 * 1024


@dataclass(slots=True, frozen=True)
class Message:
    """Context ready to append: `ids` with every picture expanded to its pads, `text` for reading, pictures in order.
    `originals`: the bytes that they were made of, where somebody may want more of their pixels; else empty."""

    ids: list[int]
    text: str
    images: list[CanonicalImage]
    originals: list[bytes] = field(default_factory=list)

    @property
    def refs(self) -> list[ImageRef]:
        return [ImageRef(i.sha256, i.grid_thw) for i in self.images]

    @property
    def pictures(self) -> list[Picture]:
        originals = self.originals or [i.png for i in self.images]
        return [Picture(data, image) for data, image in zip(originals, self.images, strict=True)]


@dataclass(slots=True)
class Context:
    """`protocol` speaks of `tools`; `allowed` calls of each a trajectory, by the tool's name."""

    tokenizer: Any
    prompts: Prompts
    limits: ProtocolConfig
    rollout: RolloutConfig
    model: ModelConfig
    search: Search | None
    store: ImageStore
    pad_id: int
    stop_id: int
    banned_ids: list[int]
    family: Family
    pictures: PictureRule
    tools: Mapping[str, Tool]
    protocol: TurnProtocol
    allowed: dict[str, int]

    @classmethod
    def build(
        cls,
        tokenizer: Any,
        *,
        prompts: Prompts,
        limits: ProtocolConfig,
        rollout: RolloutConfig,
        model: ModelConfig,
        search: Search | None,
        store: ImageStore,
        family: Family,
        pictures: PictureRule | None = None,
        tools: Mapping[str, Section] | None = None,
    ) -> Context:
        """`limits.name` is the protocol, `tools` the config's section, `pictures` defaults to the family's own rule. Raises
        UsageError if the tokenizer lacks one of the family's tokens."""
        tokens = family.tokens
        made = configured(tools or {})
        return cls(
            tokenizer, prompts, limits, rollout, model, search, store,
            pad_id=tokens.id_of(tokens.picture_pad, tokenizer, model.path),
            stop_id=tokens.id_of(tokens.turn_end, tokenizer, model.path),
            banned_ids=tokens.banned_ids(tokenizer), family=family, pictures=pictures or family.pictures,
            tools=made, protocol=protocol.get(limits.name, list(made.values()), **limits.options),
            allowed={name: tool.limit(limits) for name, tool in made.items()},
        )  # fmt: skip

    @classmethod
    def open(cls, cfg: RunConfig, search: Search | None, store: ImageStore) -> Context:
        """As a run's settings have it. Raises as `build` does."""
        files = of_checkpoint(cfg.model.path, cfg.model.family)
        return cls.build(
            load_tokenizer(cfg.model.path),
            prompts=Prompts.load(cfg.protocol.prompts),
            limits=cfg.protocol,
            rollout=cfg.rollout,
            model=cfg.model,
            search=search,
            store=store,
            family=files.family,
            pictures=files.pictures,
            tools=cfg.tools,
        )

    async def canonical(self, data: bytes) -> CanonicalImage:
        """The form of a picture that engine and trainer both get. ImageError if it is no picture."""
        return (await self.picture(data)).image

    async def picture(self, data: bytes, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Picture:
        """As `tools.base.Pictures` has it: bounds outside of the model's own are the model's."""
        self._look()
        low, high = self.model.min_pixels, self.model.max_pixels
        least = low if min_pixels is None else min(max(low, min_pixels), high)
        limits = {"min_pixels": least, "max_pixels": high if max_pixels is None else min(high, max(max_pixels, least))}
        if len(data) <= INLINE_IMAGE_BYTES:
            return Picture(data, canonicalize(data, rule=self.pictures, **limits))
        return Picture(data, await asyncio.to_thread(canonicalize, data, rule=self.pictures, **limits))

    def picture_tokens(self, data: bytes) -> int:
        """Tokens that a picture takes, without decoding it. ImageError if it is no picture."""
        self._look()
        width, height = stored_size(data)
        limits = {"min_pixels": self.model.min_pixels, "max_pixels": self.model.max_pixels}
        h, w = canonical_size(height, width, self.pictures, **limits)
        return self.pictures.tokens((1, h // self.pictures.patch, w // self.pictures.patch))

    def _look(self) -> None:
        if not self.family.sees_pictures:
            raise ImageError(f"models of the family {self.family.name} see no pictures")

    def encode(self, segments: list[Segment]) -> list[int]:
        """Token ids of segments, a single pad a picture."""
        tokens = self.family.tokens
        return protocol.encode(self.tokenizer, segments, (*self.protocol.tags, *tokens.tags), picture=tokens.picture)

    def message(self, segments: list[Segment], images: list[CanonicalImage], originals: Sequence[bytes] = ()) -> Message:
        """Token ids of a message and its pictures, as one. Raises ValueError if their numbers differ."""
        ids = self.encode(segments)
        pads = [self.pictures.tokens(i.grid_thw) for i in images]
        shown = "".join("<image>" if s.kind == "image" else s.text for s in segments)
        return Message(expand_pads(ids, self.pad_id, pads), shown, images, list(originals))

    def decode(self, ids: list[int]) -> str:
        """A sampled turn as text, for parsing and reading only, without its end-of-turn token."""
        ids = ids[:-1] if ids and ids[-1] == self.stop_id else ids
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def search_client(cfg: RunConfig, url: str | None) -> SearchClient | None:
    """A client of the search server at `url` with a run's time-out and retries; its owner closes it."""
    if url is None:
        return None
    from megatron_mmsr1.search.client import SearchClient

    return SearchClient(url, timeout_s=cfg.rollout.tool_timeout_s, retries=cfg.rollout.retries, run=cfg.output)


def load_tokenizer(path: str | Path) -> Any:
    """The checkpoint's own tokenizer. UsageError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: cannot load its tokenizer: {e}") from e
