"""Hard caps through the whole server: so many calls reach the vendor and not one more, and the trainer is told which cap."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search_app import serving
from vendors import retrieve
from vendors.server import Asked, Reply, Vendor

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.rollout.throttle import _outage
from megatron_mmsr1.run.search_watch import budget_reached
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.wire import TextReply
from megatron_mmsr1.trajectory import ToolCall, Trajectory


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor(retrieve.found, latency=0.01) as v:
        yield v


def cfg(vendor: Vendor, budget: dict[str, Any], **text: Any) -> SearchConfig:
    section = {"backend": "retrieve", "url": vendor.url, "retries": 0, "breaker_failures": 1000, **text}
    return SearchConfig.model_validate({"text": section, "budget": budget})


async def ask(url: str, queries: list[str], run: str = "r", step: int = 0) -> list[TextReply]:
    async with SearchClient(url, retries=0, run=run, step=step) as client:
        return list(await asyncio.gather(*(client.text(q) for q in queries)))


def some(n: int, name: str = "q") -> list[str]:
    return [f"{name}{i}" for i in range(n)]


def told(replies: list[TextReply]) -> str:
    """What the trainer makes of it."""
    t = Trajectory("p", "g", 0, "q", [])
    for r in replies:
        t.append("tool", [1], "", tool=ToolCall("text", "q", r.status, detail=r.detail))
    assert t.infrastructure_failure == any(r.status == "budget" for r in replies)
    return budget_reached([t])


def statuses(replies: list[TextReply]) -> dict[str, int]:
    return dict(Counter(r.status.value for r in replies))


@pytest.mark.parametrize("concurrency", [1, 7, 64])
async def test_the_runs_cap_holds_however_many_ask_at_once(vendor: Vendor, tmp_path: Path, concurrency: int) -> None:
    settings = cfg(vendor, {"run_calls": 10}, concurrency=concurrency)
    async with serving(settings, tmp_path / "s.sqlite") as server:
        replies = await ask(server.url, some(50))
        assert (statuses(replies), len(vendor.requests)) == ({"ok": 10, "budget": 40}, 10)
        for r in replies:
            assert (r.status == "ok") or r.detail == "search.budget.run_calls=10 is reached: 10 calls are made"
            assert not (r.status == "budget" and _outage(r.status))  # waiting mends nothing
        assert "search.budget.run_calls=10" in told(replies)
        # What was found stays found, for nothing; what was not is refused again; another run has a cap of its own.
        again = await ask(server.url, some(50))
        assert [r.status for r in again] == [r.status for r in replies] and len(vendor.requests) == 10
        assert all(r.cached == (r.status == "ok") for r in again)
        assert statuses(await ask(server.url, some(3, "other"), run="another")) == {"ok": 3}


async def test_the_same_query_is_billed_once(vendor: Vendor, tmp_path: Path) -> None:
    async with serving(cfg(vendor, {"run_calls": 1}), tmp_path / "s.sqlite") as server:
        assert statuses(await ask(server.url, ["q"] * 50)) == {"ok": 50}
        assert statuses(await ask(server.url, ["q", "p"])) == {"ok": 1, "budget": 1}
    assert len(vendor.requests) == 1


async def test_a_steps_cap_ends_with_the_step(vendor: Vendor, tmp_path: Path) -> None:
    async with serving(cfg(vendor, {"step_calls": 4, "run_calls": 11}), tmp_path / "s.sqlite") as server:
        for step in (0, 1):
            replies = await ask(server.url, some(10, f"{step}-"), step=step)
            assert statuses(replies) == {"ok": 4, "budget": 6}
            assert all("search.budget.step_calls=4" in r.detail for r in replies if r.status == "budget")
            assert told(replies) == ""  # the run goes on
        replies = await ask(server.url, some(10, "2-"), step=2)
        assert statuses(replies) == {"ok": 3, "budget": 7} and "search.budget.run_calls=11" in told(replies)
        # One client, step after step: each call is booked where it was made.
        async with SearchClient(server.url, run="s") as client:
            for client.step in range(3):
                assert (await client.text(f"step {client.step}")).status == "ok"
            spent = {(r["run"], r["calls"]) for r in (await client.stats())["spend"]}
        assert spent == {("r", 11), ("s", 3)}


async def test_dollars_are_capped_to_the_cent(vendor: Vendor, tmp_path: Path) -> None:
    settings = cfg(vendor, {"run_usd": 0.1}, usd_per_1000=15, price_as_of="2026-01-01")
    async with serving(settings, tmp_path / "s.sqlite") as server:
        replies = await ask(server.url, some(20))
    assert statuses(replies) == {"ok": 6, "budget": 14}  # the seventh would make it 0.105
    assert "search.budget.run_usd=0.1" in told(replies) and "$0.09 is spent" in told(replies)


async def test_the_ledger_outlives_the_server(vendor: Vendor, tmp_path: Path) -> None:
    settings = cfg(vendor, {"run_calls": 10})
    for turn, ok in enumerate((6, 4, 0)):
        async with serving(settings, tmp_path / "s.sqlite") as server:
            assert statuses(await ask(server.url, some(6, f"{turn}-"))).get("ok", 0) == ok
    assert len(vendor.requests) == 10 and (tmp_path / "s.sqlite.ledger").exists()


async def test_servers_that_share_a_ledger_share_its_caps(vendor: Vendor, tmp_path: Path) -> None:
    settings = cfg(vendor, {"day_calls": 10, "ledger": str(tmp_path / "shared")})
    async with serving(settings, tmp_path / "a") as one, serving(settings, tmp_path / "b") as two:
        got = await asyncio.gather(ask(one.url, some(20, "a"), run="a"), ask(two.url, some(20, "b"), run="b"))
    assert statuses([*got[0], *got[1]]) == {"ok": 10, "budget": 30} and len(vendor.requests) == 10
    assert "search.budget.day_calls=10" in told([*got[0], *got[1]])


async def test_what_the_vendor_does_not_bill_is_not_counted(vendor: Vendor, tmp_path: Path) -> None:
    """Refused by the vendor: booked back. Cut off in the middle: nobody knows, so it counts."""

    def handler(asked: Asked) -> Reply:
        query = asked.json()["queries"][0]
        if query.startswith("refused"):
            return retrieve.error(500, "no")
        return Reply(b"{}", wire="dropped") if query.startswith("dropped") else retrieve.found(asked)

    vendor.handler = handler
    async with serving(cfg(vendor, {"run_calls": 5}), tmp_path / "s.sqlite") as server:
        assert statuses(await ask(server.url, some(3, "refused"))) == {"upstream_error": 3}
        assert statuses(await ask(server.url, some(2, "q"))) == {"ok": 2}
        assert statuses(await ask(server.url, some(1, "dropped"))) == {"upstream_error": 1}
        assert statuses(await ask(server.url, some(9, "more"))) == {"ok": 2, "budget": 7}
        async with SearchClient(server.url) as client:
            assert [r["calls"] for r in (await client.stats())["spend"]] == [5]


async def test_a_cap_of_nothing_makes_no_call(vendor: Vendor, tmp_path: Path) -> None:
    async with serving(cfg(vendor, {"run_calls": 0}), tmp_path / "s.sqlite") as server:
        assert statuses(await ask(server.url, some(5))) == {"budget": 5}
    assert vendor.requests == []


async def test_local_backends_are_never_counted(tmp_path: Path) -> None:
    from search_fixtures import write_corpus

    settings = SearchConfig.model_validate({"corpus": str(write_corpus(tmp_path / "w")), "budget": {"run_calls": 0}})
    async with serving(settings, tmp_path / "s.sqlite") as server:
        assert statuses(await ask(server.url, ["zurimo", "kadepi"])) == {"ok": 2}
