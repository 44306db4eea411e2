"""What pages and models say is data in an answer, whatever it looks like."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.trajectory import Status, ToolStatus
from serving.answering import Answered, Delta, SearchEnded, Source, Usage
from serving.gateway.completion import Completion, event, failure, link
from serving.gateway.replies import ChatCompletion, ChatCompletionChunk

URLS = [
    "javascript:alert(1)",
    "data:text/html,x",
    "file:///etc/passwd",
    "//host/x",
    "x",
    "",
    " http://a",
    "http://a\nb",
    "ftp://a",
]


def answered(text: str, *sources: Source, error: str = "", status: Status = Status.ANSWERED) -> Answered:
    return Answered(text, sources, Usage(), 0.1, "stop", status, None, error=error)


@pytest.mark.parametrize("url", URLS)
def test_only_links_of_the_web_are_given_on(url):
    found = Source(1, "text", "t", url, "s", supports=True)
    told = Completion("i", "m", trace=True, usage=True)
    step = told.feed(SearchEnded("text", "q", 1, ToolStatus.OK, 0.1, False, False, "b", "", (found,)))
    assert step["search_step"]["results"][0]["url"] == ""
    whole = told.body(answered("s", found))
    assert whole["citations"] == [] and whole["choices"][0]["message"]["annotations"] == []
    assert [r["url"] for r in whole["search_results"]] == [""]
    assert link("https://a.test/b?c") == "https://a.test/b?c" and link("HTTP://a.test") == "HTTP://a.test"


def test_a_source_is_cited_once():
    twice = [Source(n, "text", f"t{n}", "http://a.test", "s", supports=True) for n in (1, 2)]
    other = Source(3, "text", "t3", "http://b.test", "", supports=False)
    whole = Completion("i", "m", trace=False, usage=False).body(answered("s", *twice, other))
    assert whole["citations"] == ["http://a.test"] and len(whole["search_results"]) == 3
    assert [a["url_citation"]["title"] for a in whole["choices"][0]["message"]["annotations"]] == ["t1"]


@given(st.lists(st.tuples(st.sampled_from(["reasoning", "answer"]), st.text(st.characters(codec="utf-8"), min_size=1))))
def test_whatever_is_said_stays_within_its_event(said):
    """Line breaks, control characters and things that look like events of their own."""
    told = Completion("i", "m", trace=False, usage=True)
    chunks = [told.feed(Delta(kind, text, 1)) for kind, text in [*said, ("answer", "\n\ndata: [DONE]\n\n")]]
    done = answered("x")
    for chunk in [told.first(), *chunks, *told.last(done)]:
        line = event(chunk)
        assert line.startswith(b"data: {") and line.endswith(b"}\n\n") and b"\n" not in line[:-2]
        ChatCompletionChunk.model_validate_json(line[6:])
        assert all("tool_calls" not in c["delta"] for c in chunk["choices"])
    ChatCompletion.model_validate_json(json.dumps(told.body(done)))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.ABORTED, "deadline_exceeded"),
        (Status.ENGINE_ERROR, "engine_unavailable"),
        (Status.TOOL_ERROR, "search_failed"),
    ],
)
def test_a_failure_says_its_kind_and_no_inner_address(status, code):
    words = "no answer within 3 s" if status is Status.ABORTED else "http://10.0.0.1:30000: connection failed"
    told = failure(answered("", error=words, status=status))
    assert told is not None and (told.status, told.code) == (503, code) and "10.0.0.1" not in told.message
    assert failure(answered("x")) is None
