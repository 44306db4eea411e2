"""Keys and limits: who may call, and how much."""

from __future__ import annotations

import hashlib
import logging
import stat
from typing import Any

import pytest
from gateway_fixtures import served
from serving_fixtures import atlas_config, questions

from megatron_mmsr1.errors import UsageError
from serving.gateway.errors import ApiError
from serving.gateway.limits import Limits
from serving.keys import Keys, is_loopback, new_key, open_keys
from serving.settings import GatewaySection, LimitsSection


# ------------------------------------------------------------------------------------------------------------ the file
def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path):
    path = tmp_path / "keys"
    ada, bob = new_key(path, "ada"), new_key(path, "bob")
    assert ada != bob and ada not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().splitlines()[0] == f"ada:{hashlib.sha256(ada.encode()).hexdigest()}"
    keys = Keys(path)
    assert (keys.name(ada), keys.name(bob)) == ("ada", "bob")
    for wrong in ("", "ada", ada[:-1], ada + "x", hashlib.sha256(ada.encode()).hexdigest(), "\ud800"):
        assert keys.name(wrong) is None
    with pytest.raises(UsageError, match="ada"):
        new_key(path, "ada")
    for name in ("", "a:b", "a b", "a\nb", "-a", "x" * 65):
        with pytest.raises(UsageError, match="no name"):
            new_key(path, name)


def test_a_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "keys"
    new_key(path, "ada")
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        Keys(path)


@pytest.mark.parametrize("text", ["", "# nobody\n", "ada\n", "ada:xyz\n", "a b:" + "0" * 64, "ada:" + "0" * 63, "\ud800"])
def test_a_file_without_keys_or_with_other_things_is_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError) as e:
        Keys(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "127.0.0.1.example.org", "localhost.org"])
def test_without_keys_only_this_machine_is_served(host):
    assert not is_loopback(host)
    with pytest.raises(UsageError, match=r"gateway\.keys"):
        open_keys(GatewaySection(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_on_loopback_none_are_needed(host):
    assert open_keys(GatewaySection(host=host)) is None


# ----------------------------------------------------------------------------------------------------------- the gateway
def test_with_keys_nobody_else_is_answered(atlas_world, atlas_engine, atlas_search, tmp_path, caplog):
    import openai

    path = tmp_path / "keys"
    key = new_key(path, "ada")
    limits = {"requests_per_minute": 3, "searches_per_day": 1}
    cfg = atlas_config(atlas_world, gateway={"name": "atlas", "keys": str(path), "limits": limits})
    question: list[Any] = [{"role": "user", "content": questions(atlas_world)["text"].question}]
    with served(cfg, [atlas_engine.url], atlas_search) as gateway:
        for wrong in ("x", key[:-1]):
            with pytest.raises(openai.AuthenticationError) as e:
                gateway.client(wrong).chat.completions.create(model="atlas", messages=question)
            assert e.value.code == "invalid_api_key"
        assert gateway.get("/v1/models").status_code == gateway.get("/metrics").status_code == 401
        assert gateway.get("/health").status_code == 200
        assert gateway.get("/v1/models", headers={"host": "any.name", "authorization": f"Bearer {key}"}).status_code == 200
        # A body is not read of somebody who may not send one.
        r = gateway.post(content=b"{" * 10**6, headers={"content-type": "application/json"})
        assert r.status_code == 401 and "bearer" in r.headers["www-authenticate"].lower()

        client = gateway.client(key)
        with caplog.at_level(logging.INFO):
            first = client.chat.completions.create(model="atlas", messages=question)
        assert first.usage.searches == 1  # pyright: ignore
        assert '"key": "ada"' in caplog.text and key not in caplog.text
        with pytest.raises(openai.RateLimitError) as e:
            client.chat.completions.create(model="atlas", messages=question)
        assert e.value.code == "search_quota_exceeded"
        assert client.chat.completions.create(model="atlas:no-search", messages=question).usage.searches == 0  # pyright: ignore
        with pytest.raises(openai.RateLimitError) as e:
            client.chat.completions.create(model="atlas:no-search", messages=question)
        assert e.value.code == "rate_limit_exceeded" and 0 < int(e.value.response.headers["retry-after"]) <= 60


# ------------------------------------------------------------------------------------------------------- limits by the clock
class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, **options: int) -> Limits:
    return Limits(LimitsSection.model_validate(options), clock=clock, now=clock)


def refusal(held: Limits, key: str = "ada") -> str | None:
    try:
        with held.enter(key):
            return None
    except ApiError as e:
        assert e.status == 429 and int(e.headers["retry-after"]) >= 1
        return e.code


def test_a_minute_slides():
    clock = Clock()
    held = limits(clock, requests_per_minute=2)
    assert refusal(held) is None
    clock.now += 30
    assert refusal(held) is None and refusal(held) == "rate_limit_exceeded"
    assert refusal(held, "bob") is None  # each key has its own
    clock.now += 29
    assert refusal(held) == "rate_limit_exceeded"
    clock.now += 2
    assert refusal(held) is None and refusal(held) == "rate_limit_exceeded"


def test_concurrency_of_a_key_and_of_all():
    held = limits(Clock(), key_concurrency=1, concurrency=2, queue=1)
    with held.enter("ada"):
        assert refusal(held) == "concurrency_limit_exceeded"
        with held.enter("bob"), held.enter("eve"):
            assert refusal(held, "kay") == "overloaded" and held.inside == 3
        assert refusal(held, "kay") is None
    assert refusal(held) is None and held.inside == 0


def test_searches_of_a_day_are_promised_before_they_are_made():
    """So that answers in the making cannot together overdraw it."""
    clock = Clock()
    held = limits(clock, searches_per_day=5)
    assert held.reserve("ada", 3) == 3
    assert held.reserve("ada", 3) == 2
    with pytest.raises(ApiError) as e:
        held.reserve("ada", 1)
    assert int(e.value.headers["retry-after"]) <= 86_400 and e.value.headers["x-should-retry"] == "false"
    assert held.reserve("ada", 0) == 0 and held.reserve("bob", 5) == 5
    held.settle("ada", 3, 1)
    assert held.reserve("ada", 9) == 2
    clock.now += 86_400
    assert held.reserve("ada", 9) == 5
