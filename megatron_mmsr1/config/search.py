"""The `search` section: which backends answer, how hard they may be asked, what they may cost, what is kept of their answers.

`text`, `image`, `read` and `summarise` each name a backend: a file of that name in `text/`, `image/`, ... of
`search/backends/`.
"""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from megatron_mmsr1.config.section import Affects, Machine, Section

Mode = Literal["live", "record", "replay", "replay-strict"]


class BackendSection(Section):
    """One backend: which, where, how hard it may be asked, what it costs. Local ones need none of the numbers."""

    backend: str
    url: str | None = Field(default=None, description="base URL of a server of your own; default: the vendor's")
    key: Machine[str | None] = Field(
        default=None,
        description="NAME of the environment variable or line of `search.keys` that holds the API key",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the backend's own settings (docs/search.md)")
    concurrency: Machine[int] = Field(default=32, gt=0, description="calls in flight at once")
    per_second: Machine[float | None] = Field(
        default=None, gt=0, description="calls started a second, at most; default: no limit"
    )
    timeout_s: Machine[float] = Field(default=10.0, gt=0, description="one try")
    retries: Machine[int] = Field(default=2, ge=0, le=2, description="more tries after a connection error, 429 or 5xx")
    breaker_failures: Machine[int] = Field(default=5, gt=0, description="failures in a row that open the circuit breaker")
    breaker_cooldown_s: Machine[float] = Field(
        default=5.0, gt=0, description="open for so long, doubled each time up to a minute"
    )
    usd_per_1000: Machine[float | None] = Field(default=None, ge=0, description="price of 1,000 billed calls, for the ledger")
    price_as_of: Machine[datetime.date | None] = Field(
        default=None, description="the day that this price was looked up (YYYY-MM-DD)"
    )

    @model_validator(mode="after")
    def _dated(self) -> BackendSection:
        if self.usd_per_1000 and not self.price_as_of:
            raise ValueError(f"usd_per_1000={self.usd_per_1000:g} needs price_as_of, the day that it was looked up")
        return self


class TextSection(BackendSection):
    """Text search."""

    backend: str = Field(default="bm25", description="bm25, serpapi, serper, brave, tavily, searxng, ddgs, retrieve")
    spare: int = Field(default=3, ge=0, description="results beyond k that are asked for, to replace pages that cannot be read")
    country: str = Field(default="us", description="two letters, as the vendors know them (gl)")
    language: str = Field(default="en", description="two letters (hl)")


class ImageSection(BackendSection):
    """Image search."""

    backend: str = Field(
        default="auto",
        description="auto (descriptor where the corpus has images.jsonl, else none), descriptor, embedding, recorded, "
        "serpapi_lens, serper_lens, none",
    )
    uploader: str = Field(
        default="none", description="none, s3, signed_route: how a picture gets the public URL that a live Lens wants"
    )
    upload: dict[str, Any] = Field(default_factory=dict, description="the uploader's own settings (docs/search.md)")
    country: str = "us"
    language: str = "en"
    thumbnail_pixels: int = Field(default=512, gt=0, description="longest side of a kept thumbnail")


class ReadSection(BackendSection):
    """Reading the pages that a text search found."""

    backend: str = Field(
        default="auto", description="auto (corpus if there is one, else none), corpus, jina, trafilatura, none"
    )
    concurrency: Machine[int] = Field(default=64, gt=0, description="calls in flight at once")
    max_chars: int = Field(default=100_000, gt=0, description="of a page's text; the rest is cut")


class SummariseSection(BackendSection):
    """Summarising a page for a query."""

    backend: str = Field(default="extractive", description="extractive, openai (or any compatible endpoint), none")
    concurrency: Machine[int] = Field(default=64, gt=0, description="calls in flight at once")
    timeout_s: Machine[float] = Field(default=20.0, gt=0, description="one try")
    model: str = Field(default="Qwen/Qwen3-32B", description="openai: the model's name at the endpoint")


class BudgetSection(Section):
    """Hard caps. A call that would pass one is answered `budget` and not made; null: no cap."""

    AFFECTS = Affects.MACHINE

    run_usd: float | None = Field(default=None, ge=0)
    step_usd: float | None = Field(default=None, ge=0)
    day_usd: float | None = Field(default=None, ge=0, description="UTC day, over every run that shares the ledger")
    run_calls: int | None = Field(default=None, ge=0, description="calls to backends that are not local")
    step_calls: int | None = Field(default=None, ge=0)
    day_calls: int | None = Field(default=None, ge=0)
    ledger: str | None = Field(default=None, description="SQLite file; default: beside the cache")


class FetchSection(Section):
    """The guarded fetcher, through which every URL goes that a model, a page or a user named."""

    allow: list[str] = Field(
        default_factory=list,
        description="HOST or HOST:PORT of your own that may be private, on any port; no wildcards",
    )
    deadline_s: Machine[float] = Field(default=10.0, gt=0, description="a whole fetch, redirects included")
    max_bytes: int = Field(default=5_000_000, gt=0, description="after decompression")
    user_agent: str = "megatron-mmsr1 (+search reader)"


class EstimateSection(Section):
    """What `mmsr1 search estimate` assumes; the shares are measured by any run (search/..., tool/cached)."""

    AFFECTS = Affects.MACHINE

    text_per_trajectory: float = Field(default=0.7, ge=0, description="text searches a trajectory")
    image_per_trajectory: float = Field(default=0.5, ge=0, description="image searches a trajectory")
    text_cached: float = Field(default=0.2, ge=0, le=1, description="share of text searches that the store answers")
    latency_s: dict[str, float] = Field(
        default_factory=lambda: {"text": 1.5, "image": 3.0, "read": 2.0, "summarise": 3.0},
        description="seconds a call to each stage",
    )


class SearchConfig(Section):
    AFFECTS = Affects.ROLLOUT

    url: Machine[str | None] = Field(default=None, description="a search server that runs already; default: one is started")
    corpus: str | None = Field(default=None, description="directory with corpus.jsonl and, for image search, images.jsonl")
    mode: Mode = Field(
        default="live",
        description="live: the store is a cache; record: it also keeps every failed or degraded outcome; replay: it answers "
        "first, a miss goes out and is not kept; replay-strict: nothing goes out",
    )
    cache: Machine[str | None] = Field(
        default=None, description="the store, a SQLite file: cache and snapshot; default: inside the run"
    )
    keys: Machine[str | None] = Field(
        default=None, description="file of NAME=value lines with API keys, readable by its owner only"
    )
    deadline_s: Machine[float] = Field(
        default=28.0, gt=0, description="one call as a whole; keep it under rollout.tool_timeout_s"
    )
    text: TextSection = TextSection()
    image: ImageSection = ImageSection()
    read: ReadSection = ReadSection()
    summarise: SummariseSection = SummariseSection()
    budget: BudgetSection = BudgetSection()
    fetch: FetchSection = FetchSection()
    estimate: EstimateSection = EstimateSection()
    text_top_sentences: int = Field(default=2, gt=0, description="sentences the extractive summary keeps")
    missing_rate: float = Field(default=0.0, ge=0, le=1, description="local backends only: share of searches that find nothing")
    error_rate: float = Field(default=0.0, ge=0, le=1, description="local backends only: share of searches that fail")
    latency_s: float = Field(default=0.0, ge=0, description="local backends only: added to each search")
