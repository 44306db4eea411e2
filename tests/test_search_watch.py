"""What a run notices of its search: warnings, metrics, the snapshot's name, a used-up budget; and servers of another make."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search_fixtures import write_corpus
from vendors.server import Asked, Reply, Vendor, answer

from megatron_mmsr1 import config
from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.rollout.jobs import Progress
from megatron_mmsr1.run.search_watch import SearchWatch, budget_reached
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.server.launch import launch
from megatron_mmsr1.trajectory import ToolCall, ToolStatus, Trajectory

CFG = config.parse({"model": {"path": "-"}, "rollout": {"alert_above": 0.25, "pause_above": 0.5}}, "test")


def trajectory(*calls: ToolStatus | tuple[ToolStatus, str]) -> Trajectory:
    t = Trajectory("p", "g", 0, "q", ["a"])
    for call in calls:
        status, detail = call if isinstance(call, tuple) else (call, f"why {call}")
        t.append("tool", [1], "seen", tool=ToolCall("text", "q", status, detail=detail))
    return t


class Heard:
    def __init__(self, url: str | None):
        self.warned: list[str] = []
        self.told: list[str] = []
        self.now = 0.0
        self.watch = SearchWatch(url, CFG, self.warned.append, self.told.append, clock=lambda: self.now)


def test_an_outage_is_said_once_when_it_begins_and_once_when_it_ends() -> None:
    """Search that answers now and then, as it does for what the store holds, pauses and resumes many times in one outage."""
    h = Heard("http://h:1")
    for n in range(86):  # within 13 s
        h.now = n * 0.15
        h.watch.heard(Progress(1, 9, h.now, paused=n % 2 == 1, paused_s=h.now / 2, failing=0.75))
    assert (len(h.warned), h.told) == (1, [])
    assert all(s in h.warned[0] for s in ("75%", "rollout.pause_above=0.5", "mmsr1 search stats http://h:1"))
    for h.now in (13.0, 22.0, 24.0, 28.0):
        h.watch.heard(Progress(1, 9, h.now, paused_s=8.0))
    assert len(h.told) == 1 and "43 pauses, 8 s in all" in h.told[0]
    h.watch.heard(Progress(1, 9, 28.5, paused=True, paused_s=8.0))  # another one
    h.now = 29.0
    h.watch.heard(Progress(1, 9, 29.0, paused_s=9.0))
    assert len(h.warned) == 2 and len(h.told) == 1
    h.watch.step(0, [])  # a step's end tells what is over
    assert "1 pause, 1 s in all" in h.told[1] and len(h.told) == 2


def test_the_servers_statistics_in_another_form_are_told_once_and_counted(vendor: Vendor) -> None:
    vendor.handler = lambda _: answer({"upstreams": {"serper": {"calls": 3}}, "snapshot": {"entries": {}}})
    h = Heard(vendor.url)
    assert [h.watch.step(n, []).get("search/stats_unreadable") for n in range(3)] == [1, 2, 3]
    assert len(h.warned) == 1 and "/v1/stats" in h.warned[0] and "'statuses'" in h.warned[0]


def test_a_long_rollout_says_how_far_it_is_and_a_short_one_nothing() -> None:
    h = Heard(None)
    for seconds in (0.5, 10.0, 29.0, 31.0, 59.0, 62.0):  # of one batch
        h.watch.heard(Progress(int(seconds), 96, seconds, 100, {"answered": int(seconds)}))
    for seconds in (0.5, 29.0, 30.5):  # of the next one: its own half minute
        h.watch.heard(Progress(int(seconds), 96, seconds, 100))
    h.watch.heard(Progress(96, 96, 99.0))  # the end has a line of its own, the step's
    assert h.told == [
        "rollout 31/96, 1.0/s, 100 tokens (31 answered)",
        "rollout 62/96, 1.0/s, 100 tokens (62 answered)",
        "rollout 30/96, 1.0/s, 100 tokens",
    ]


def test_a_batch_that_has_no_answer_yet_says_what_it_waits_for() -> None:
    h = Heard(None)
    for seconds in (1.0, 4.0, 6.0, 20.0, 37.0):
        h.watch.heard(Progress(0, 6, seconds))
    assert h.told == [f"rollout 0/6: none has ended in {s} s; waiting for the engine's first answers" for s in (6, 37)]


def test_pauses_are_counted_in_the_step_that_had_them() -> None:
    h = Heard(None)
    seen = []
    for total in (0.0, 4.0, 4.0, 10.0):
        h.watch.heard(Progress(0, 1, 1.0, paused_s=total))
        seen.append(h.watch.step(0, [])["search/paused_s"])
    assert seen == [0.0, 4.0, 0.0, 6.0]


@pytest.mark.parametrize(
    ("calls", "warns"),
    [
        ([], False),
        ([ToolStatus.OK, ToolStatus.EMPTY, ToolStatus.REFUSED], False),  # a query at fault is no infrastructure
        ([ToolStatus.OK] * 3 + [ToolStatus.TIMEOUT], False),  # at the threshold, not above it
        ([ToolStatus.OK] * 2 + [ToolStatus.TIMEOUT], True),
        ([ToolStatus.BUDGET], True),
    ],
)
def test_a_step_with_many_failures_is_warned_about(calls: list[ToolStatus], warns: bool) -> None:
    h = Heard(None)
    assert set(h.watch.step(7, [trajectory(c) for c in calls])) == {"search/paused_s"}
    assert bool(h.warned) == warns
    if warns:
        assert all(s in h.warned[0] for s in ("step 7: 1 of", f"1 {calls[-1]}", "rollout.alert_above=0.25", f"why {calls[-1]}"))


# ---------------------------------------------------------------------------------------------------------------- budget
@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ([ToolStatus.OK, ToolStatus.TIMEOUT], ""),
        ([(ToolStatus.BUDGET, "search.budget.step_calls=5 is reached: 5 calls are made")], ""),
        ([(ToolStatus.BUDGET, "search.budget.run_usd=5 is reached: $5 is spent")], "search.budget.run_usd=5 is reached"),
        ([(ToolStatus.BUDGET, "search.budget.day_calls=5 is reached")], "search.budget.day_calls=5"),
        ([(ToolStatus.BUDGET, "serper answered HTTP 400: Not enough credits")], "Not enough credits"),
        ([(ToolStatus.BUDGET, "")], "account is used up"),
        ([(ToolStatus.BUDGET, "search.budget.step_usd=1 x"), (ToolStatus.BUDGET, "search.budget.run_usd=2 y")], "run_usd=2"),
        ([(ToolStatus.UPSTREAM_ERROR, "search.budget.run_usd=5")], ""),
    ],
)
def test_a_used_up_budget_but_for_a_steps_own(calls: list[Any], says: str) -> None:
    got = budget_reached([trajectory(ToolStatus.OK), *(trajectory(c) for c in calls)])
    assert says in got and bool(got) == bool(says)
    assert budget_reached([]) == ""


# --------------------------------------------------------------------------------------------------------- a real server
async def test_the_servers_counts_and_its_snapshots_name(tmp_path: Path) -> None:
    from vendors import retrieve

    cfg = {"text": {"backend": "retrieve", "usd_per_1000": 100, "price_as_of": "2026-01-01"}, "read": {"backend": "none"}}
    with Vendor(retrieve.found) as v:
        cfg["text"]["url"] = v.url
        with launch(SearchConfig.model_validate(cfg), cache_path=tmp_path / "s", log=tmp_path / "log") as server:
            h = Heard(server.url + "/")  # as a person may write it
            async with SearchClient(server.url) as client:
                assert [(await client.text(q)).status for q in ("a", "b", "b")] == ["ok"] * 3
            got, named = h.watch.step(0, []), h.watch.identity()
    assert {k: got[f"search_server/retrieve/{k}"] for k in ("ok", "retries", "breaker_open", "breaker_closed")} == {
        "ok": 2,
        "retries": 0,
        "breaker_open": 0,
        "breaker_closed": 0,
    }
    assert got["search_server/retrieve/usd"] == pytest.approx(0.2)
    assert got["search_server/entries"] >= 4  # a search and a whole result each
    assert (named["mode"], len(named["id"]), set(named["backends"])) == ("live", 16, {"text", "summarise"})
    json.dumps(named)
    assert h.watch.identity() == {}  # it has ended
    assert set(h.watch.step(1, [])) == {"search/paused_s"}


def test_a_store_less_server_says_so(tmp_path: Path) -> None:
    with launch(SearchConfig(corpus=str(write_corpus(tmp_path / "w"))), cache_path=None, log=tmp_path / "log") as server:
        h = Heard(server.url)
        assert (h.watch.identity()["id"], h.watch.step(0, [])["search_server/entries"]) == (None, 0)


# ----------------------------------------------------------------------------------------------------- of another make
STRANGE = {
    "a list": answer([]),
    "a number": answer(5),
    "other keys": answer({"upstreams": 5, "snapshot": None}),
    "half of ours": answer({"upstreams": {"x": {}}, "snapshot": {"entries": {}}}),
    "no snapshot": answer({"upstreams": {}, "mode": "live"}),
    "a page": Reply(b"<html>", 200, {"content-type": "text/html"}),
    "bytes": Reply(b"\xff\xfe\x00"),
    "not found": answer({}, 404),
    "broken": answer({}, 500),
    "truncated": Reply(b'{"upstreams": {}}', wire="truncated"),
    "dropped": Reply(wire="dropped"),
    "deep": Reply(b"[" * 100_000),
}


@pytest.fixture(scope="module")
def vendor() -> Iterator[Vendor]:
    with Vendor(lambda _: answer({})) as v:
        yield v


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_search_server_of_ours_ends_no_run(vendor: Vendor, name: str) -> None:
    vendor.handler = lambda _: STRANGE[name]
    h = Heard(vendor.url)
    assert set(h.watch.step(0, [])) <= {"search/paused_s", "search/stats_unreadable"}
    assert set(h.watch.identity()) <= {"mode", "id", "backends"}


def test_what_speaks_no_http_ends_no_run() -> None:
    import threading

    with socket.create_server(("127.0.0.1", 0)) as s:

        def shout() -> None:
            for _ in range(2):
                c, _ = s.accept()
                c.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                c.close()

        thread = threading.Thread(target=shout)
        thread.start()
        h = Heard(f"http://127.0.0.1:{s.getsockname()[1]}")
        assert h.watch.identity() == {} and set(h.watch.step(0, [])) == {"search/paused_s"}
        thread.join()


def test_the_environments_proxy_sees_nothing(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def handler(a: Asked) -> Reply:
        asked.append(a.target)
        return answer({"mode": "live", "id": None})

    vendor.handler = handler
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Heard(vendor.url).watch.identity() == {"mode": "live", "id": None}
    assert asked == ["/v1/snapshot"]
