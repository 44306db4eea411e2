"""What a search backend is: four small protocols. A new backend is one new file that implements one of them.

Every method is async and either returns a typed result or raises `SearchFailure` with a typed status; an empty list means that
the search worked and found nothing. `name` and `version` go into every cache key: a change of behaviour, of an index or of a
prompt must change `version`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from megatron_mmsr1.trajectory import ToolStatus
from megatron_mmsr1.untyped import is_dict, is_list


class SearchFailure(Exception):
    """A call that gave no result: `status` says whose fault it is, `detail` what happened (never a key, never a secret).

    `retry`: seconds to wait at least before another try makes sense; None: it makes none. `billed`: whether the vendor charges
    for it all the same; what nobody knows (a time-out) counts as billed.
    """

    def __init__(self, status: ToolStatus, detail: str, *, retry: float | None = None, billed: bool = False):
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.retry = retry
        self.billed = billed


@dataclass(slots=True, frozen=True)
class TextResult:
    """One result of a text search. `score` compares within one reply only; higher is better.

    `text`: the page itself where the vendor gave it with the result; it is then not read again.
    """

    url: str
    title: str
    snippet: str = ""
    score: float = 0.0
    text: str = ""


@dataclass(slots=True, frozen=True)
class ImageResult:
    """One result of an image search. `image` is the thumbnail's encoded bytes, None where there is none."""

    url: str
    title: str
    image: bytes | None = None
    score: float = 0.0


@dataclass(slots=True, frozen=True)
class Page:
    """A page as clean text: one block (paragraph, table row) a line, hidden text and markup gone."""

    url: str
    title: str
    text: str


class Backend(Protocol):
    """`local`: answers from this process, without network or price, so its parts are not worth a layer of the store.

    `version` holds everything but the query that the answer depends on: code, index, locale, model, prompt; never a key.
    `close` frees what the backend holds (a connection pool); it is called once, in the loop that made the calls.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def local(self) -> bool: ...
    async def close(self) -> None: ...


@dataclass(slots=True, frozen=True)
class Quota:
    """What an account has left: `left` searches (None: no limit) `of` a period's (None: it does not say)."""

    left: int | None
    of: int | None = None


@runtime_checkable
class Accounted(Backend, Protocol):
    """A backend whose vendor tells, free of charge, what an account has left."""

    async def quota(self) -> Quota | None:
        """None where this vendor has no such page after all. Raises SearchFailure, also for a key that is refused."""
        ...


class TextBackend(Backend, Protocol):
    async def search(self, query: str, k: int, /) -> Sequence[TextResult]:
        """At most `k` results, best first."""
        ...


class ImageBackend(Backend, Protocol):
    async def search(self, image: bytes, k: int, /) -> Sequence[ImageResult]:
        """At most `k` results for an encoded picture (PNG, JPEG, WebP, GIF, BMP), best first."""
        ...


class Reader(Backend, Protocol):
    async def read(self, url: str) -> Page:
        """The page behind a URL."""
        ...


class Summariser(Backend, Protocol):
    async def summarise(self, query: str, page_text: str) -> str:
        """What the page says on the query, in a few sentences; "" for a page without text."""
        ...


# Vendors' result lists as `TextResult`s. Their types are not trusted: a title may be null, a number or missing.


def listed(value: Any) -> list[dict[str, Any]]:
    """The objects of a JSON array; TypeError if it is none."""
    if not is_list(value):
        raise TypeError(f"a list of results is documented, not {type(value).__name__}")
    return [row for row in value if is_dict(row)]


def words(value: Any) -> str:
    """A JSON value as text: strings and numbers; "" for all else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def is_link(value: Any) -> bool:
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def results(rows: Iterable[dict[str, Any]], k: int, *, link: str, title: str, snippet: str, text: str = "") -> list[TextResult]:
    """At most `k` of the rows that have an http(s) link, under the vendor's names for the fields; the scores fall with rank."""
    kept = [row for row in rows if is_link(row.get(link))][:k]
    return [
        TextResult(row[link], words(row.get(title)), words(row.get(snippet)), 1 / rank, words(row.get(text)))
        for rank, row in enumerate(kept, 1)
    ]


def version(code: int, **parts: Any) -> str:
    """`code` is raised when the file's way to ask or to read changes; `parts`: what else the answer depends on."""
    return ":".join([str(code), *(f"{name}={value}" for name, value in sorted(parts.items()) if value not in (None, "", []))])
