"""What a running search server says of itself: its snapshot and its counts."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.procs import http

TIMEOUT_S = 5.0


def identity(url: str | None) -> dict[str, Any]:
    """{"mode", "id", "backends"} of a search server's snapshot: what goes into checkpoints, dumps, evaluations and reports.
    {} where no server can say it."""
    held = ask(url, "/v1/snapshot")
    return {k: held[k] for k in ("mode", "id", "backends") if k in held}


def ask(url: str | None, path: str) -> dict[str, Any]:
    """A page of the search server's as JSON; {} where there is none."""
    if url is None:
        return {}
    try:
        said = http.get(url.rstrip("/") + path, timeout_s=TIMEOUT_S).json()
    except http.Unanswered:  # a server of another make, or one that is down: nothing to tell
        return {}
    return said if isinstance(said, dict) else {}
