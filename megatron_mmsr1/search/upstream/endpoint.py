"""Where a backend is asked: the base URL of its section, or the vendor's."""

from __future__ import annotations

from urllib.parse import urlsplit

from megatron_mmsr1.config.search import BackendSection
from megatron_mmsr1.errors import UsageError


def endpoint(section: BackendSection, setting: str, default: str | None = None, like: str = "http://host:8080") -> str:
    """The base URL without a slash at its end. `setting`: the section's name in the config, e.g. search.text.

    Raises UsageError where there is none, or one that is no http(s) URL. What stands in it is not repeated, for a user name and
    a password may; it may have no query, which a request's own would replace.
    """
    url = section.url or default
    if url is None:
        raise UsageError(f"{setting}.url is not set: {section.backend} has no public server; name yours, e.g. {like}")
    try:
        parts = urlsplit(url)
        fits = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query + parts.fragment
        )
    except ValueError:  # a port that is no number, brackets that do not close
        fits = False
    if not fits:
        raise UsageError(f"{setting}.url is not a base URL: write it as {like}, without ? and #")
    return url.rstrip("/")
