"""Failures on purpose: as many as asked for, the same ones every time, typed, and never kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from search_fixtures import png, write_corpus, write_images
from starlette.testclient import TestClient

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.server.compose import Faults
from megatron_mmsr1.search.server.main import build_app


async def fates(faults: Faults, n: int = 4000) -> list[str]:
    out = []
    for i in range(n):
        try:
            out.append("missing" if await faults.meet(b"%d" % i) else "fine")
        except SearchFailure as e:
            assert e.status == "upstream_error"
            out.append("failed")
    return out


async def test_shares_are_as_asked() -> None:
    found = await fates(Faults(missing_rate=0.2, error_rate=0.1))
    # Binomial over 4,000 draws: four standard deviations are 4 sqrt(p (1 - p) / 4000) = 0.025 and 0.019.
    assert found.count("missing") / 4000 == pytest.approx(0.2, abs=0.025)
    assert found.count("failed") / 4000 == pytest.approx(0.1, abs=0.019)


async def test_a_run_repeats_and_a_higher_rate_keeps_what_failed() -> None:
    low, high = await fates(Faults(error_rate=0.1)), await fates(Faults(error_rate=0.3))
    assert low == await fates(Faults(error_rate=0.1))
    assert all(h == "failed" for lo, h in zip(low, high, strict=True) if lo == "failed")


@pytest.mark.parametrize(("cfg", "want"), [({"error_rate": 1.0}, "failed"), ({"missing_rate": 1.0}, "missing"), ({}, "fine")])
async def test_the_extremes(cfg: dict[str, float], want: str) -> None:
    assert set(await fates(Faults(**cfg), 200)) == {want}


def test_rates_beyond_one_are_the_persons_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing_rate=0\.7 and search\.error_rate=0\.7"):
        build_app(SearchConfig(corpus=str(write_corpus(tmp_path)), missing_rate=0.7, error_rate=0.7), None)


def test_through_the_server_and_its_cache(tmp_path: Path) -> None:
    """Both tools fail by the query; a failure is no cache hit the second time; another rate is another cache entry."""
    directory = write_corpus(tmp_path / "w")
    picture = png(write_images(directory, 3)[0])
    cache = tmp_path / "c.sqlite"
    queries = [f"zurimo {i}" for i in range(40)]

    def statuses(missing_rate: float = 0.0, error_rate: float = 0.0) -> list[tuple[str, bool]]:
        with TestClient(
            build_app(SearchConfig(corpus=str(directory), missing_rate=missing_rate, error_rate=error_rate), cache)
        ) as client:
            replies = [client.post("/v1/search/text", json={"query": q}) for q in queries]
            assert all(r.status_code == 200 for r in replies)
            return [(r.json()["status"], r.json().get("cached", False)) for r in replies]

    first, second = statuses(error_rate=0.5), statuses(error_rate=0.5)
    assert {s for s, _ in first} == {"ok", "upstream_error"}
    assert [s for s, _ in first] == [s for s, _ in second]
    assert [c for _, c in second] == [s == "ok" for s, _ in second]
    assert statuses() == [("ok", False)] * 40
    assert statuses(missing_rate=1.0) == [("empty", False)] * 40
    with TestClient(build_app(SearchConfig(corpus=str(directory), error_rate=1.0), cache)) as client:
        import base64

        reply = client.post("/v1/search/image", json={"image_base64": base64.b64encode(picture).decode()})
        assert (reply.status_code, reply.json()["status"]) == (200, "upstream_error")
        reply = client.post("/retrieve", json={"queries": ["zurimo"]})
        assert (reply.status_code, reply.json()["status"]) == (502, "upstream_error")
