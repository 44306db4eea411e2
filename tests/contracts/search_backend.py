"""The contract of a search backend (`search/backends/interfaces.py`): run these on your own. They raise AssertionError."""

from __future__ import annotations

import inspect
from typing import Any

from megatron_mmsr1.search.backends.interfaces import ImageResult, SearchFailure, TextResult


def _described(backend: Any) -> None:
    for name in ("name", "version"):
        assert isinstance(getattr(backend, name, None), str) and getattr(backend, name), f"{name} must be a text"
    assert isinstance(getattr(backend, "local", None), bool), "local must be true or false"
    for method in ("search", "close"):
        assert inspect.iscoroutinefunction(getattr(backend, method, None)), f"{method} must be an async method"


async def _results(backend: Any, what: Any, kind: type) -> list[Any]:
    found: list[Any] = []
    for k in (1, 2, 5):
        try:
            found = list(await backend.search(what, k))
        except SearchFailure:
            continue
        except Exception as e:
            raise AssertionError(f"search raised {type(e).__name__}: only a SearchFailure says what went wrong") from e
        assert len(found) <= k, f"search gave {len(found)} results where at most {k} were asked for"
        assert all(isinstance(r, kind) for r in found), f"every result must be a {kind.__name__}"
        scores = [r.score for r in found]
        assert scores == sorted(scores, reverse=True), "the best result comes first"
        assert all(r.url for r in found), "every result has a URL"
    return found


async def check_text_backend(backend: Any, query: str) -> list[TextResult]:
    """`query` is one that the backend should find something for. Returns the last results."""
    _described(backend)
    found = await _results(backend, query, TextResult)
    for odd in ("", " ", "\u0000", "x" * 10_000, "\N{SNOWMAN}"):
        await _results(backend, odd, TextResult)
    return found


async def check_image_backend(backend: Any, picture: bytes) -> list[ImageResult]:
    """`picture` is an encoded picture. Bytes that are no picture must be refused as a SearchFailure."""
    _described(backend)
    found = await _results(backend, picture, ImageResult)
    try:
        await backend.search(b"no picture", 1)
    except SearchFailure:
        return found
    raise AssertionError("bytes that are no picture must raise a SearchFailure")
