"""Vendors' result lists as `TextResult`s. Their types are not trusted: a title may be null, a number or missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from megatron_mmsr1.search.backends.interfaces import TextResult


def listed(value: Any) -> list[dict[str, Any]]:
    """The objects of a JSON array; TypeError if it is none."""
    if not isinstance(value, list):
        raise TypeError(f"a list of results is documented, not {type(value).__name__}")
    return [row for row in value if isinstance(row, dict)]


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
