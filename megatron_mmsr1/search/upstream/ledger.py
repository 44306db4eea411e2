"""What calls cost, and the hard caps on it. A call is booked before it is made, so that no number of calls at once can pass a
cap; a call that the vendor does not bill is booked back. What a killed server had booked stays booked: never too little.

The ledger is one SQLite file, which several servers may share; its day caps then hold over all of them.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from megatron_mmsr1.config.search import BudgetSection
from megatron_mmsr1.errors import RunError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.limits import Outage
from megatron_mmsr1.trajectory import ToolStatus

_TABLE = """CREATE TABLE IF NOT EXISTS spend (
    run TEXT, step INTEGER, day TEXT, backend TEXT, calls INTEGER NOT NULL, micro_usd INTEGER NOT NULL,
    PRIMARY KEY (run, step, day, backend))"""
MICRO = 1_000_000
BUSY_S = 10.0  # how long another server may hold the file


@dataclass(slots=True, frozen=True)
class Account:
    """Who pays: a run and its step (-1 where there is none, as for a person's own query)."""

    run: str = ""
    step: int = -1


account: ContextVar[Account] = ContextVar("search account", default=Account())  # noqa: B039 (frozen)


@dataclass(slots=True, frozen=True)
class Booking:
    who: Account
    day: str
    backend: str
    micro_usd: int


class Ledger:
    """`path` None keeps it in memory. RunError if the file cannot be opened. One event loop's."""

    def __init__(self, path: Path | None, budget: BudgetSection):
        self._budget = budget
        self._name = path or "in memory"
        self._refunds = Outage(f"refunding in the search ledger ({self._name})", logging.getLogger(__name__))
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path or ":memory:", timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            _to_wal(self._db)
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_TABLE)
            self._db.execute("CREATE INDEX IF NOT EXISTS spend_day ON spend (day)")
        except (sqlite3.Error, OSError) as e:
            raise RunError(f"search ledger {path}: {e}: move it away, or name another with search.budget.ledger") from None

    def book(self, backend: str, usd: float) -> Booking:
        """Raises SearchFailure(budget), which names the cap, if this call would pass one; then nothing is booked.

        A ledger that cannot be written is a failure too (upstream_error): a call that nobody books may pass every cap.
        """
        who = account.get()
        b = Booking(who, time.strftime("%Y-%m-%d", time.gmtime()), backend, round(usd * MICRO))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._check(b)
            self._add(b, 1)
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            why = f"the search ledger ({self._name}) cannot be written ({e}), so no call is made"
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, why) from None
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return b

    def refund(self, booking: Booking) -> None:
        """The vendor does not bill it. If the ledger cannot be written it stays booked, which the log says."""
        try:
            self._add(booking, -1)
        except sqlite3.Error as e:
            self._refunds.failed(f"{booking} stays booked ({e})")
        else:
            self._refunds.worked()

    def spent(self) -> list[dict[str, str | int | float]]:
        """A row a run, day and backend: calls and dollars."""
        rows = self._db.execute(
            "SELECT run, day, backend, sum(calls), sum(micro_usd) FROM spend GROUP BY 1, 2, 3 ORDER BY day, run, backend"
        )
        return [{"run": r, "day": d, "backend": b, "calls": c, "usd": m / MICRO} for r, d, b, c, m in rows]

    def close(self) -> None:
        self._db.close()

    def _check(self, b: Booking) -> None:
        caps = self._budget
        for name, usd, calls, where, args in (
            ("run", caps.run_usd, caps.run_calls, "run = ?", (b.who.run,)),
            ("step", caps.step_usd, caps.step_calls, "run = ? AND step = ?", (b.who.run, b.who.step)),
            ("day", caps.day_usd, caps.day_calls, "day = ?", (b.day,)),
        ):
            if usd is None and calls is None:
                continue
            n, micro = self._sum(where, args)
            if usd is not None and micro + b.micro_usd > round(usd * MICRO):
                raise _over(f"search.budget.{name}_usd={usd:g}", f"${micro / MICRO:.4g} is spent")
            if calls is not None and n + 1 > calls:
                raise _over(f"search.budget.{name}_calls={calls}", f"{n} calls are made")

    def _sum(self, where: str, args: tuple[object, ...]) -> tuple[int, int]:
        return self._db.execute(
            f"SELECT coalesce(sum(calls), 0), coalesce(sum(micro_usd), 0) FROM spend WHERE {where}", args
        ).fetchone()

    def _add(self, b: Booking, sign: int) -> None:
        self._db.execute(
            "INSERT INTO spend VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "calls = calls + excluded.calls, micro_usd = micro_usd + excluded.micro_usd",
            (b.who.run, b.who.step, b.day, b.backend, sign, sign * b.micro_usd),
        )


def _to_wal(db: sqlite3.Connection) -> None:
    """SQLite does not wait for others here: servers that make the file at one moment would fail."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _over(cap: str, so_far: str) -> SearchFailure:
    return SearchFailure(ToolStatus.BUDGET, f"{cap} is reached: {so_far}")
