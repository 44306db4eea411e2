"""From the `search` section of a config to the backends that it names. A new backend is chosen here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.bm25 import Bm25
from megatron_mmsr1.search.corpus import Corpus, CorpusReader
from megatron_mmsr1.search.extractive import Extractive
from megatron_mmsr1.search.faults import Faults, FaultyImage, FaultyText
from megatron_mmsr1.search.interfaces import Backend, ImageBackend, Reader, Summariser, TextBackend


@dataclass(slots=True, frozen=True)
class Backends:
    """`image` is None where there is nothing to search pictures with."""

    text: TextBackend
    image: ImageBackend | None
    reader: Reader
    summariser: Summariser

    def all(self) -> list[Backend]:
        return [b for b in (self.text, self.image, self.reader, self.summariser) if b is not None]


def compose(cfg: SearchConfig) -> Backends:
    """Load indexes and make the backends. Raises UsageError that names the key, the file and the line."""
    if cfg.corpus is None:
        raise UsageError("search.corpus is not set: name the directory that holds corpus.jsonl")
    faults = Faults(cfg.missing_rate, cfg.error_rate, cfg.latency_s)
    corpus = Corpus.load(cfg.corpus)
    text: TextBackend = Bm25(corpus)
    image = _pictures(Path(cfg.corpus))
    if faults:
        text = FaultyText(text, faults)
        image = image and FaultyImage(image, faults)
    return Backends(text, image, CorpusReader(corpus), Extractive(cfg.text_top_sentences))


def _pictures(directory: Path) -> ImageBackend | None:
    if not (directory / "images.jsonl").exists():
        return None
    from megatron_mmsr1.search.descriptor import DescriptorIndex

    return DescriptorIndex(directory)
