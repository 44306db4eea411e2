"""What a ledger holds of one run."""

from __future__ import annotations

from typing import Any

from megatron_mmsr1.search.upstream.ledger import Ledger


def run_total(ledger: Ledger, run: str = "") -> tuple[int, float]:
    """Calls and dollars."""
    rows: list[dict[str, Any]] = [r for r in ledger.spent() if r["run"] == run]
    return sum(r["calls"] for r in rows), sum(r["usd"] for r in rows)
