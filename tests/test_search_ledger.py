"""The ledger and its caps, over several servers too; keys and where they come from."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_sums import run_total

from megatron_mmsr1.config.search import BudgetSection
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.ledger import Account, Ledger, account
from megatron_mmsr1.search.upstream.secrets import Keys, Secret
from megatron_mmsr1.trajectory import ToolStatus


def booked(ledger: Ledger, who: Account, n: int = 1, usd: float = 0.0) -> int:
    """How many of `n` calls the caps let through."""
    token = account.set(who)
    done = 0
    try:
        for _ in range(n):
            ledger.book("serper", usd)
            done += 1
    except SearchFailure as e:
        assert e.status is ToolStatus.BUDGET
    finally:
        account.reset(token)
    return done


def test_caps_of_steps_runs_and_days() -> None:
    ledger = Ledger(None, BudgetSection(step_calls=3, run_calls=5, day_calls=8))
    assert booked(ledger, Account("a", 0), 9) == 3
    assert booked(ledger, Account("a", 1), 9) == 2
    assert booked(ledger, Account("b", 0), 2) == 2
    assert booked(ledger, Account("c", 0), 9) == 1
    assert sum(int(row["calls"]) for row in ledger.spent()) == 8


@pytest.mark.parametrize(
    ("budget", "cap"),
    [
        (BudgetSection(step_usd=1), "step_usd=1"),
        (BudgetSection(run_calls=1), "run_calls=1"),
        (BudgetSection(day_usd=1), "day_usd=1"),
    ],
)
def test_a_cap_that_is_reached_is_named(budget: BudgetSection, cap: str) -> None:
    ledger = Ledger(None, budget)
    ledger.book("serper", 1.0)
    with pytest.raises(SearchFailure, match=rf"search\.budget\.{cap} is reached"):
        ledger.book("serper", 0.000001)


@given(st.integers(1, 3_000), st.integers(0, 2_000_000))
def test_dollars_add_up_without_rounding(micro_price: int, micro_cap: int) -> None:
    ledger = Ledger(None, BudgetSection(run_usd=micro_cap / 1e6))
    n = min(micro_cap // micro_price, 50)
    assert booked(ledger, Account(), n, micro_price / 1e6) == n
    assert run_total(ledger, "") == (n, pytest.approx(n * micro_price / 1e6))
    if n < 50:
        assert booked(ledger, Account(), 1, micro_price / 1e6) == 0


def test_a_refund_goes_to_the_day_and_step_of_its_booking(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", BudgetSection(step_calls=1))
    token = account.set(Account("a", 7))
    booking = ledger.book("serper", 0.5)
    account.reset(token)
    ledger.refund(booking)
    assert booked(ledger, Account("a", 7), 9) == 1
    assert run_total(ledger, "a") == (1, 0)


HAMMER = """
import sys
from pathlib import Path
from megatron_mmsr1.config.search import BudgetSection
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.ledger import Ledger
print("ready", flush=True)
sys.stdin.readline()
ledger, done = Ledger(Path(sys.argv[1]), BudgetSection(day_calls=1000)), 0
for i in range(800):
    try:
        booking = ledger.book("serper", 0.001)
    except SearchFailure as e:
        assert e.status == "budget", e
        continue
    if i % 4 == 3:
        ledger.refund(booking)
    else:
        done += 1
print(done)
"""


def test_servers_that_share_a_ledger_share_the_days_cap(tmp_path: Path) -> None:
    """They also create it at one moment."""
    path = tmp_path / "shared" / "ledger.sqlite"
    command = [sys.executable, "-c", HAMMER, str(path)]
    servers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for server in servers:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
    for server in servers:
        assert server.stdin is not None
        server.stdin.write("go\n")
        server.stdin.flush()
    done = [int(server.communicate(timeout=120)[0]) for server in servers]
    assert [server.returncode for server in servers] == [0, 0, 0]
    ledger = Ledger(path, BudgetSection(day_calls=1000))
    assert sum(done) == run_total(ledger, "")[0]
    assert sum(done) + booked(ledger, Account(), 999) == 1000


def test_what_a_killed_server_booked_stays(tmp_path: Path) -> None:
    code = HAMMER.replace("print(done)", "import os; os.kill(os.getpid(), 9)")
    command = [sys.executable, "-c", code, str(tmp_path / "l.sqlite")]
    assert subprocess.run(command, input="go\n", text=True, capture_output=True).returncode == -9
    assert run_total(Ledger(tmp_path / "l.sqlite", BudgetSection()), "")[0] == 600


def test_a_ledger_that_cannot_be_written_lets_no_call_through(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(None, BudgetSection(run_calls=3))
    booking = ledger.book("serper", 0.0)
    ledger._db.execute("PRAGMA query_only=ON")
    for _ in range(2):
        with pytest.raises(SearchFailure, match="cannot be written") as told:
            ledger.book("serper", 0.0)
        assert told.value.status is ToolStatus.UPSTREAM_ERROR
    ledger.refund(booking)
    assert "refunding in the search ledger" in caplog.text and "Booking" in caplog.text
    ledger._db.execute("PRAGMA query_only=OFF")
    assert booked(ledger, Account(), 9) == 2


@pytest.mark.parametrize("content", [b"not a database at all, but some text\n" * 100, None])
def test_a_ledger_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ledger"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(RunError, match=r"search ledger .*search\.budget\.ledger"):
        Ledger(path, BudgetSection())


# ----------------------------------------------------------------------------------------------------------------- keys
def keys_file(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret("word-of-power")
    told = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>40}",
        f"{secret!r}",
        f"{[secret]} {dict(k=secret)}",
    ]
    told += [json.dumps({"k": secret}, default=str)]
    for dump in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(TypeError) as e:
            dump(secret)
        told.append(str(e.value))
    with pytest.raises(TypeError):
        vars(secret)
    assert not [t for t in told if "power" in t]
    assert secret.value == "word-of-power"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660, 0o602, 0o601, 0o777])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match=f"mode {mode:04o}.*chmod 600") as told:
        Keys(keys_file(tmp_path / "keys", "A=word-of-power\n", mode))
    assert "power" not in str(told.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_of_keys(tmp_path: Path, mode: int) -> None:
    text = "# mine\n\nA=one\nexport B = 'two=2' \nC=\"three\"\nD=\nA_B=x\n"
    keys = Keys(keys_file(tmp_path / "keys", text, mode), {"C": "3", "E": " five\n", "A": " "})
    found = {name: (s.value if (s := keys.get(name)) else None) for name in ("A", "B", "C", "D", "E", "F")}
    assert found == {"A": "one", "B": "two=2", "C": "3", "D": None, "E": "five", "F": None}


def test_what_is_missing_is_said_with_its_name_and_place(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"brave needs an API key: set K in the environment \(or in a 0600 file named by search.keys\)"
    ):
        Keys(None, {}).require("K", "brave")
    path = keys_file(tmp_path / "keys", "A=1\n")
    with pytest.raises(UsageError, match=f"set K in the environment .*{path} has no such line"):
        Keys(path, {}).require("K", "brave")


@pytest.mark.parametrize("text", ["A=1\nword-of-power\n", "=word-of-power", "\xa0word-of-power"])
def test_a_line_that_is_no_key_is_told_by_its_number_only(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"keys:[12] is not NAME=value") as told:
        Keys(keys_file(tmp_path / "keys", text))
    assert "power" not in str(told.value)


@pytest.mark.parametrize(
    "value", ["two words", "caf\xe9-power", "line\nbreak-power", "tab\tpower", "nul\x00power", "\u201cpower\u201d"]
)
def test_a_key_that_no_header_can_carry_is_told_before_it_is_used(value: str) -> None:
    with pytest.raises(UsageError, match="K is no API key") as told:
        Keys(None, {"K": value}).get("K")
    assert "power" not in str(told.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"A=\xff\xfe-power")
    binary.chmod(0o600)
    for path in (tmp_path / "none", tmp_path, binary):
        os.chmod(path, 0o700) if path.is_dir() else None
        with pytest.raises(UsageError, match=r"search\.keys: .* cannot be read") as told:
            Keys(str(path))
        assert "power" not in str(told.value)
