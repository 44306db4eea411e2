"""From the `search` section of a config to the backends that it names: a file of that name, in the directory of its kind.

A backend's module defines `make(section, tools)`. A new backend is one new file, here or anywhere; nothing here changes.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.config.search import BackendSection
from megatron_mmsr1.plugins.registry import Registry
from megatron_mmsr1.search.backends.check import Tools
from megatron_mmsr1.search.backends.interfaces import Backend, ImageBackend, Reader, Summariser, TextBackend
from megatron_mmsr1.search.server.faults import Faults, FaultyImage, FaultyText

NONE = "none"


@dataclass(slots=True, frozen=True)
class Backends:
    """`image` is None where there is nothing to search pictures with; `reader` where results' own words must do;
    `summariser` where a page's start stands for its summary."""

    text: TextBackend
    image: ImageBackend | None
    reader: Reader | None
    summariser: Summariser | None

    def all(self) -> list[Backend]:
        return [b for b in (self.text, self.image, self.reader, self.summariser) if b is not None]


def compose(cfg: SearchConfig, tools: Tools) -> Backends:
    """Load indexes, find keys, make the backends. Raises UsageError that names the setting, the file and the line."""
    text: TextBackend = make("text", cfg.text, tools)
    image: ImageBackend | None = make("image", cfg.image, tools, auto=_auto_image(tools))
    faults = Faults(cfg.missing_rate, cfg.error_rate, cfg.latency_s)
    if faults:
        text = FaultyText(text, faults) if text.local else text
        image = FaultyImage(image, faults) if image and image.local else image
    reader: Reader | None = make("read", cfg.read, tools, auto=NONE if cfg.corpus is None else "corpus")
    return Backends(text, image, reader, make("summarise", cfg.summarise, tools))


def make(kind: str, section: BackendSection, tools: Tools, auto: str = NONE) -> Any:
    """The backend that a section names; None for "none". UsageError as `Registry.get` raises it."""
    name = auto if section.backend == "auto" else section.backend
    if name == NONE and kind != "text":
        return None
    return registry(kind).get(name)(section, tools)


def names(kind: str) -> list[str]:
    """The backends of a kind (text, image, read, summarise) that ship or are installed."""
    return registry(kind).names()


def registry(kind: str) -> Registry[Any]:
    """The backends of a kind: what ships, what is installed, a person's own."""
    return importlib.import_module(f"megatron_mmsr1.search.backends.{kind}").REGISTRY


def _auto_image(tools: Tools) -> str:
    return "descriptor" if tools.directory is not None and (tools.directory / "images.jsonl").exists() else NONE
