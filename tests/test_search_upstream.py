"""The way to an upstream: queue, rate, retries, breaker and deadline. In virtual time, so that every moment is exact."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstream_rig import Rig, now, outcomes, together
from virtual_time import run

from megatron_mmsr1.config.search import BudgetSection
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream import upstream as upstream_module
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import MAX_WAIT_S
from megatron_mmsr1.trajectory import ToolStatus as S


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "BACKOFF_S", 0.0)


DOWN = SearchFailure(S.UPSTREAM_ERROR, "HTTP 503", retry=0.0)
REFUSED = SearchFailure(S.UPSTREAM_ERROR, "HTTP 401")
LIMITED = SearchFailure(S.RATE_LIMITED, "HTTP 429", retry=0.0)


@given(n=st.integers(1, 60), concurrency=st.integers(1, 9))
def test_no_more_at_once_than_the_config_says_and_no_fewer_than_it_can(n: int, concurrency: int) -> None:
    async def main() -> None:
        rig, started = Rig(concurrency=concurrency), now()
        assert await together(*(rig.ask() for _ in range(n))) == {"found": n}
        assert rig.peak == min(n, concurrency)
        assert now() - started == pytest.approx(math.ceil(n / concurrency))

    run(main())


def test_the_rate_holds_for_retries_too() -> None:
    async def main() -> None:
        rig, started = Rig(concurrency=50, per_second=4), now()
        await together(*(rig.ask(0.01, LIMITED) for _ in range(5)))
        assert len(rig.tries) == 15
        assert sorted(rig.tries) == pytest.approx([started + n / 4 for n in range(15)])

    run(main())


# -------------------------------------------------------------------------------------------------------------- retries
@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("failure", [DOWN, LIMITED])
def test_tries_are_bounded(retries: int, failure: SearchFailure) -> None:
    async def main() -> None:
        rig = Rig(retries=retries)
        assert await together(rig.ask(failure=failure)) == {str(failure.status): 1}
        assert len(rig.tries) == 1 + retries
        assert rig.metrics.statuses == {failure.status: 1 + retries}
        assert rig.metrics.plain()["retries"] == retries

    run(main())


def test_more_than_two_retries_cannot_be_configured() -> None:
    with pytest.raises(ValueError, match="retries"):
        Rig(retries=3)


def test_what_makes_no_sense_to_repeat_is_not() -> None:
    async def main() -> None:
        for status in set(S) - {S.OK}:
            rig = Rig()
            assert await together(rig.ask(failure=SearchFailure(status, "no"))) == {str(status): 1}
            assert len(rig.tries) == 1

    run(main())


def test_retry_after_is_kept_by_every_call() -> None:
    """The one that was told waits, and so does who comes meanwhile."""

    async def main() -> None:
        rig, started = Rig(), now()
        wait = SearchFailure(S.RATE_LIMITED, "HTTP 429", retry=7.0)
        first = asyncio.create_task(together(rig.ask(1.0, wait)))
        await asyncio.sleep(3)
        assert await rig.ask() == "found"
        await first
        assert [t - started for t in rig.tries] == pytest.approx([0, 8, 8, 16, 24][: len(rig.tries)])
        assert len(rig.tries) == 4

    run(main())


def test_a_rest_longer_than_the_deadline_is_not_waited_for() -> None:
    async def main() -> None:
        rig, started = Rig(), now()
        wait = SearchFailure(S.RATE_LIMITED, "HTTP 429", retry=7.0)
        for _ in range(3):
            with pytest.raises(SearchFailure) as told:
                async with within(6, "the call"):
                    await rig.ask(1.0, wait)
            assert told.value.status is S.RATE_LIMITED
        assert (rig.tries, now()) == ([started], started + 1)  # two were told so without asking
        assert (rig.state, rig.billed) == ("closed", 0)

    run(main())


@pytest.mark.parametrize("hours", [1.0, 10**9, math.inf])
def test_nobody_is_left_alone_for_hours_because_it_says_so(hours: float) -> None:
    async def main() -> None:
        rig, started = Rig(), now()
        assert await together(rig.ask(1.0, SearchFailure(S.RATE_LIMITED, "HTTP 429", retry=3600 * hours))) == {
            S.RATE_LIMITED: 1
        }
        assert now() == started + 1
        assert await rig.ask() == "found"
        assert now() - started == pytest.approx(1 + MAX_WAIT_S + 1)

    run(main())


# ------------------------------------------------------------------------------------------------------------- deadline
def test_a_long_queue_is_no_outage() -> None:
    """Calls that the deadline ends while they queue, or just after, say nothing of a backend that is merely busy."""

    async def main() -> None:
        rig = Rig(concurrency=2, breaker_failures=2, timeout_s=10)

        async def call() -> str:
            async with within(5, "the call"):
                return await rig.ask(2.0)

        assert await together(*(call() for _ in range(40))) == {"found": 4, "timeout": 36}
        assert (rig.state, len(rig.tries)) == ("closed", 6)
        assert rig.billed == 6  # those that were sent: whether a time-out is billed nobody knows
        assert rig.upstream.breaker._row == 0
        assert await rig.ask() == "found"

    run(main())


def test_a_silent_upstream_is_an_outage() -> None:
    async def main() -> None:
        rig, started = Rig(concurrency=8, breaker_failures=3, timeout_s=4), now()
        assert await together(*(rig.ask(100) for _ in range(3))) == {"timeout": 3}
        assert (rig.state, now() - started, rig.metrics.statuses) == ("open", 4, {"timeout": 3})
        assert (rig.billed, rig.metrics.plain()["retries"]) == (3, 0)

    run(main())


@pytest.mark.parametrize(("deadline", "state"), [(4.0, "open"), (3.0, "open"), (1.0, "closed")])
def test_time_outs_at_the_deadline(deadline: float, state: str) -> None:
    """They count like others where the try had at least half its own time, also when both end at one moment."""

    async def main() -> None:
        rig = Rig(breaker_failures=3, timeout_s=4)

        async def call() -> str:
            async with within(deadline, "the call"):
                return await rig.ask(100)

        assert await together(*(call() for _ in range(3))) == {"timeout": 3}
        assert (rig.state, rig.metrics.statuses, rig.billed) == (state, {"timeout": 3}, 3)

    run(main())


def test_a_shared_call_keeps_the_deadline_that_it_was_started_under() -> None:
    """It runs in a task of its own, where no timer of those who wait for it reaches."""

    async def main() -> None:
        rig, started = Rig(concurrency=1, per_second=0.5, timeout_s=60), now()
        blocker = asyncio.create_task(rig.ask(20))
        await asyncio.sleep(0)
        async with within(5, "the call"):
            shared = [asyncio.create_task(rig.ask(1)) for _ in range(3)]
        assert await together(*shared) == {"timeout": 3}
        assert now() - started == pytest.approx(5)
        assert await blocker == "found"

    run(main())


def test_who_has_no_time_left_asks_nobody() -> None:
    async def main() -> None:
        rig = Rig()
        with pytest.raises(SearchFailure, match="no time was left to ask x") as told:
            async with within(0, "the call"):
                await rig.ask()
        assert (told.value.status, rig.tries, rig.billed) == (S.TIMEOUT, [], 0)

    run(main())


# -------------------------------------------------------------------------------------------------------------- breaker
def test_the_breaker_opens_and_closes() -> None:
    async def main() -> None:
        rig, started = Rig(breaker_failures=3, breaker_cooldown_s=5, retries=0), now()
        for _ in range(3):
            await together(rig.ask(1, DOWN))
        assert rig.state == "open"
        assert await together(*(rig.ask() for _ in range(100))) == {"upstream_error": 100}
        assert (len(rig.tries), now() - started) == (3, 3)  # at once, and nobody was asked
        await asyncio.sleep(5)
        assert await together(*(rig.ask() for _ in range(50))) == {"found": 1, "upstream_error": 49}
        assert (rig.state, len(rig.tries)) == ("closed", 4)
        assert await together(*(rig.ask() for _ in range(50))) == {"found": 50}
        assert rig.metrics.breaker_turns == {"closed": 1, "half_open": 1, "open": 1}

    run(main())


def test_those_turned_away_do_not_wait_for_the_rate() -> None:
    async def main() -> None:
        rig = Rig(breaker_failures=1, retries=0, per_second=1)
        await together(rig.ask(0.5, DOWN))
        started = now()
        assert await together(*(rig.ask() for _ in range(100))) == {"upstream_error": 100}
        assert now() == started

    run(main())


def test_those_turned_away_do_not_wait_for_a_place() -> None:
    async def main() -> None:
        rig = Rig(breaker_failures=1, retries=0, concurrency=1)
        await together(rig.ask(1, DOWN))
        busy = asyncio.create_task(rig.ask(2, breaker=False))
        await asyncio.sleep(0)
        started = now()
        assert await together(rig.ask()) == {"upstream_error": 1}
        assert now() == started
        await busy

    run(main())


@pytest.mark.parametrize("end", ["cancelled", "limited", "cut short", "over budget"])
def test_a_probe_that_learns_nothing_gives_its_place_back(end: str) -> None:
    async def main() -> None:
        rig = Rig(BudgetSection(run_calls=1), breaker_failures=1, retries=0)
        await together(rig.ask(1, DOWN))
        await asyncio.sleep(5)
        if end == "over budget":
            rig.ledger.book("another", 0)
            assert await together(rig.ask()) == {"budget": 1}
        else:
            async with within(1 if end == "cut short" else 60, "the call"):
                probe = asyncio.create_task(rig.ask(2, LIMITED if end == "limited" else None))
            await asyncio.sleep(0.5)
            assert rig.state == "half_open"
            assert await together(rig.ask()) == {"upstream_error": 1}
            if end == "cancelled":
                probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
        rig.ledger._db.execute("DELETE FROM spend")
        assert rig.state == "half_open"
        assert await rig.ask() == "found"
        assert rig.state == "closed"

    run(main())


def test_pages_of_many_hosts_share_no_breaker() -> None:
    async def main() -> None:
        rig = Rig(breaker_failures=1)
        assert await together(*(rig.ask(1, REFUSED, breaker=False) for _ in range(20))) == {"upstream_error": 20}
        assert rig.state == "closed"

    run(main())


def test_answers_that_are_no_outage_leave_it_closed() -> None:
    async def main() -> None:
        rig = Rig(breaker_failures=2, retries=0)
        for status in (S.EMPTY, S.REFUSED, S.RATE_LIMITED, S.BUDGET) * 3:
            await together(rig.ask(1, SearchFailure(status, "no")))
        assert rig.state == "closed"

    run(main())


# --------------------------------------------------------------------------------------------------------- cancellation
@given(seed=st.integers(0, 2**32))
def test_cancelled_anywhere_it_leaves_nothing_taken(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        rig = Rig(concurrency=3, per_second=rng.choice([None, 2.0]), breaker_failures=3, timeout_s=3, breaker_cooldown_s=1)
        endings = [None, None, DOWN, LIMITED, REFUSED, SearchFailure(S.RATE_LIMITED, "HTTP 429", retry=2.0)]

        async def call() -> str:
            async with within(rng.choice([2.0, 9.0, 30.0]), "the call"):
                return await rig.ask(rng.choice([0, 0.1, 1.0, 5.0]), rng.choice(endings))

        tasks = []
        for _ in range(40):
            tasks.append(asyncio.create_task(call()))
            await asyncio.sleep(rng.choice([0, 0, 0.1, 1.0]))
            for task in tasks:
                if rng.random() < 0.1:
                    task.cancel()
        ended = outcomes(await asyncio.gather(*tasks, return_exceptions=True))
        assert set(ended) <= {"found", "timeout", "rate_limited", "upstream_error", "CancelledError"}
        assert (rig.in_flight, rig.peak <= 3, rig.upstream._slots._value) == (0, True, 3)
        assert rig.metrics.waiting._value.get() == 0
        await asyncio.sleep(100)
        assert await rig.ask(0) == "found"
        assert rig.state == "closed"

    run(main())


def test_who_cancels_is_not_answered_with_a_failure() -> None:
    async def main() -> None:
        rig = Rig()
        task = asyncio.create_task(rig.ask(2))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (rig.state, rig.billed, rig.metrics.statuses) == ("closed", 1, {})

    run(main())


# ---------------------------------------------------------------------------------------------------------------- words
def test_keys_are_blotted_out_of_what_is_said() -> None:
    key = "sk/1+2 ="
    secret = Secret(key)

    async def main() -> None:
        for words in (key, "sk%2F1%2B2%20%3D", "sk%2F1%2B2+%3D", f"a {key * 400}", "x" * 290 + key, "x" * 1195 + key):
            rig = Rig(secrets=(secret,), retries=0)
            with pytest.raises(SearchFailure) as told:
                await rig.ask(1, SearchFailure(S.UPSTREAM_ERROR, words))
            said = repr(told.value) + str(told.value) + told.value.detail
            assert "sk" not in said
            assert len(told.value.detail) <= 300

    run(main())


def test_an_outage_is_two_lines_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """However many calls meet it, and however often the breaker opens."""

    async def scenario() -> None:
        rig = Rig(breaker_failures=2, breaker_cooldown_s=1, retries=0)
        down = SearchFailure(S.UPSTREAM_ERROR, "no connection")
        for _ in range(86):
            await together(rig.ask(0.0, down))
            await asyncio.sleep(0.15)
        assert (rig.state, len(caplog.messages)) == ("open", 1)
        assert "x fails: no connection" in caplog.messages[0]
        await asyncio.sleep(60)
        assert await rig.ask(0.0) == await rig.ask(0.0) == "found"
        # The first failure opened nothing; every later one, and all that were turned away, are counted.
        assert len(caplog.messages) == 2 and "x works again: 85 failures" in caplog.messages[1]

    run(scenario())
