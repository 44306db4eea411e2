"""Which of several engines takes a conversation, and what the client makes of an engine's answer."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.rollout.balance import SLACK, Balance
from megatron_mmsr1.rollout.engines.sglang.wire import SGLangWire
from megatron_mmsr1.rollout.generation import EngineError, Generation

URLS = ["http://a", "http://b", "http://c"]


def test_a_group_stays_together_while_the_load_is_even():
    balance = Balance(URLS)
    with ExitStack() as busy:
        for _ in range(SLACK + 1):
            busy.enter_context(balance.in_flight(balance.choose_for("g")))
        assert balance.choose_for("g") != URLS[0]  # its engine is now more than SLACK ahead
    assert balance.choose_for("h") == URLS[0]  # all ended: the load is gone


def test_a_failed_engine_is_avoided_while_there_is_another():
    balance = Balance(URLS)
    assert balance.choose(prefer="http://b") == "http://b"
    assert balance.choose(prefer="http://b", avoid={"http://b"}) == "http://a"
    assert balance.choose(avoid=set(URLS)) in URLS


@given(st.lists(st.integers(0, 5), min_size=50, max_size=200))
def test_no_engine_runs_far_ahead(groups):
    """Whatever the groups' sizes, conversations that never end differ by no more than the slack and one."""
    balance = Balance(URLS)
    load = dict.fromkeys(URLS, 0)
    with ExitStack() as busy:
        for group in groups:
            url = balance.choose_for(str(group))
            busy.enter_context(balance.in_flight(url))
            load[url] += 1
            assert max(load.values()) - min(load.values()) <= SLACK + 1


def read_answer(url: str, status: int, raw: bytes, seconds: float) -> Generation:
    try:
        parsed = json.loads(raw)
    except ValueError:
        parsed = None
    return SGLangWire().read(url, status, parsed, seconds, raw)


def answer(**changes: object) -> bytes:
    meta = {
        "finish_reason": {"type": "stop", "matched": 5},
        "weight_version": "3",
        "output_token_logprobs": [[-0.5, 4, None], [-0.25, 5, None]],
        "cached_tokens": 7,
        "prompt_tokens": 9,
    }
    return json.dumps({"output_ids": [4, 5], "meta_info": {**meta, **changes}}).encode()


def test_an_answer():
    g = read_answer("http://a", 200, answer(), 1.5)
    assert (g.token_ids, g.logprobs, g.weight_version, g.finish) == ([4, 5], [-0.5, -0.25], 3, "stop")
    assert (g.cached_tokens, g.prompt_tokens, g.seconds, g.weight_versions) == (7, 9, 1.5, [])
    assert read_answer("http://a", 200, answer(weight_version="default"), 0).weight_version == 0


def test_weights_that_changed_within_a_turn():
    spans = [{"version": "default", "start": 0, "end": 1}, {"version": "3", "start": 1, "end": 2}]
    assert read_answer("http://a", 200, answer(weight_versions=spans), 0).weight_versions == [0, 3]


@pytest.mark.parametrize(
    ("status", "raw", "retryable"),
    [
        (400, b'{"error": {"message": "too long"}}', False),
        (500, b"<html>", True),
        (200, b"", True),
        (200, answer(finish_reason={"type": "abort", "message": "aborted"}), True),
        (200, answer(finish_reason=None), True),
        (200, answer(output_token_logprobs=[[-0.5, 4, None]]), False),
        (200, answer(output_token_logprobs=[[-0.5, 4, None], [-0.25, 6, None]]), False),
        (200, answer(output_token_logprobs=[[-0.5, 4, None], [None, 5, None]]), False),
        (200, answer(weight_version="theirs"), False),
    ],
)
def test_what_does_not_hold_together_is_an_error(status, raw, retryable):
    with pytest.raises(EngineError) as e:
        read_answer("http://a", status, raw, 0)
    assert e.value.retryable is retryable
