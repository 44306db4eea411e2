"""The gateway as openai-python sees it: a real server over the shipped Atlas model, its engine and its search."""

from __future__ import annotations

import json
import logging

import pytest
from gateway_fixtures import Served, ask, data_uri, served
from rollout_fixtures import picture
from serving_fixtures import atlas_config, questions

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.rollout.worker import RolloutWorker
from serving.gateway.access import LOGGER
from serving.gateway.replies import ChatCompletion, ChatCompletionChunk, Health, ModelList


@pytest.fixture(scope="module")
def asked(atlas_world):
    return questions(atlas_world)


@pytest.fixture(scope="module")
def cfg(atlas_world):
    return atlas_config(atlas_world, gateway={"name": "atlas"}, searches={"again": "http://127.0.0.1:9"})


@pytest.fixture(scope="module")
def gateway(cfg, atlas_engine, atlas_search):
    with served(cfg, [atlas_engine.url], atlas_search) as g:
        yield g


def texts(chunks, field: str) -> str:
    return "".join(getattr(c.choices[0].delta, field, None) or "" for c in chunks if c.choices)


def complete(gateway: Served, messages, **options):
    return gateway.client().chat.completions.create(model=options.pop("model", "atlas"), messages=messages, **options)


def stream(gateway: Served, messages, **options):
    with complete(gateway, messages, stream=True, **options) as chunks:
        return list(chunks)


# ------------------------------------------------------------------------------------------------------------ answers
@pytest.mark.parametrize("kind", ["image", "text", "both", "picture", "known"])
def test_a_stream_says_what_a_completion_says(gateway, asked, kind):
    prompt = asked[kind]
    whole = complete(gateway, ask(prompt))
    ChatCompletion.model_validate_json(json.dumps(whole.model_dump(exclude_unset=True)))
    chunks = stream(gateway, ask(prompt), stream_options={"include_usage": True})
    for c in chunks:
        ChatCompletionChunk.model_validate_json(json.dumps(c.model_dump(exclude_unset=True)))
    message = whole.choices[0].message
    assert texts(chunks, "content") == message.content
    assert texts(chunks, "reasoning_content").strip() == message.reasoning_content  # pyright: ignore
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert not any(c.choices and c.choices[0].delta.tool_calls for c in chunks)
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1

    steps = [c.search_step for c in chunks if getattr(c, "search_step", None)]  # pyright: ignore
    searches = {"image": ["image"], "text": ["text"], "both": ["image", "text"]}.get(kind, [])
    assert [(s["type"], s["kind"]) for s in steps] == [(t, k) for k in searches for t in ("started", "ended")]
    assert all(s["status"] == "ok" and s["results"] for s in steps if s["type"] == "ended")
    assert [s["kind"] for s in whole.search_steps] == searches  # pyright: ignore
    assert whole.usage.searches == len(searches)  # pyright: ignore


def test_sources_that_hold_the_answer_are_cited(gateway, asked):
    whole = complete(gateway, ask(asked["text"]))
    message = whole.choices[0].message
    supporting = [r for r in whole.search_results if r["supports"]]  # pyright: ignore
    assert supporting and all(message.content in f"{r['title']} {r['snippet']}" for r in supporting)
    assert whole.citations == [r["url"] for r in supporting]  # pyright: ignore
    cited = [a.url_citation for a in message.annotations]
    assert [a.url for a in cited] == whole.citations and all(a.end_index == len(message.content) for a in cited)  # pyright: ignore
    assert [r["n"] for r in whole.search_results] == list(range(1, len(whole.search_results) + 1))  # pyright: ignore

    chunks = stream(gateway, ask(asked["text"]))
    last = chunks[-1]
    assert last.choices[0].finish_reason == "stop"
    assert last.citations == whole.citations and last.search_results == whole.search_results
    told = [a for c in chunks for a in getattr(c.choices[0].delta, "annotations", None) or []]
    assert [a["url_citation"]["url"] for a in told] == whole.citations  # pyright: ignore


def test_a_conversation_keeps_its_pictures(gateway, asked):
    """A question about the picture of the turn before is answered as if it were asked with it."""
    first = asked["picture"]
    alone = complete(gateway, ask(first), extra_body={"search": {"trace": True}})
    follow = [*ask(first), {"role": "assistant", "content": "blue"}, {"role": "user", "content": first.question}]
    whole = complete(gateway, follow, extra_body={"search": {"trace": True}})
    assert len(whole.trace["images"]) == 1 and whole.trace["images"] == alone.trace["images"]  # pyright: ignore
    assert whole.trace["token_ids"][: len(alone.trace["token_ids"])] != whole.trace["token_ids"]  # pyright: ignore
    echoed = [*ask(first), alone.choices[0].message.model_dump(), {"role": "user", "content": first.question}]
    assert complete(gateway, echoed).choices[0].finish_reason == "stop"  # whatever a client kept of an answer may come back


def test_several_pictures_in_one_message_and_text_alone(gateway, asked):
    parts = [{"type": "image_url", "image_url": {"url": data_uri(picture(n)), "detail": "low"}} for n in range(3)]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what ?"}]}]
    whole = complete(gateway, messages, extra_body={"search": {"trace": True}})
    found = sum(len(s["results"]) for s in whole.search_steps if s["kind"] == "image")  # pyright: ignore
    assert len(whole.trace["images"]) == 3 + found  # pyright: ignore
    alone = complete(gateway, [{"role": "user", "content": asked["text"].question}])
    assert alone.choices[0].finish_reason == "stop"


def test_without_searches(gateway, asked):
    for whole in (
        complete(gateway, ask(asked["both"]), model="atlas:no-search"),
        complete(gateway, ask(asked["both"]), extra_body={"search": {"tools": []}}),
        complete(gateway, ask(asked["both"]), extra_body={"search": {"max_searches": 0}}),
    ):
        assert whole.usage.searches == 0 and whole.search_results == []  # pyright: ignore
        assert whole.choices[0].message.content


def test_a_search_may_be_required_and_limited(gateway, asked):
    import openai

    whole = complete(gateway, ask(asked["known"]), extra_body={"search": {"require": True}})
    assert whole.usage.searches >= 1  # pyright: ignore
    whole = complete(gateway, ask(asked["both"]), extra_body={"search": {"max_searches": 1}})
    assert whole.usage.searches == 1 and whole.choices[0].message.content  # pyright: ignore
    with pytest.raises(openai.BadRequestError) as e:
        complete(gateway, ask(asked["known"]), extra_body={"search": {"require": True, "tools": []}})
    assert e.value.param == "search.require"


def test_an_unreachable_search_server_is_a_step_that_failed(gateway, asked):
    """Named by its name; the answer comes all the same."""
    whole = complete(gateway, ask(asked["text"]), extra_body={"search": {"server": "again"}})
    assert whole.choices[0].message.content
    assert {s["status"] for s in whole.search_steps} == {"upstream_error"}  # pyright: ignore


# ------------------------------------------------------------------------------------------------ a rollout, again
def test_a_recorded_rollout_comes_out_alike(gateway, cfg, asked, atlas_engine, atlas_search, tmp_path):
    """The agent is the rollout's own: of the same seed, the same tokens, searches and observations included."""
    for seed in (3, 4):
        run = RunConfig.model_validate(
            {
                "seed": seed,
                "output": str(tmp_path),
                "rollout": {"temperature": 1.0},
                **{name: getattr(cfg, name).model_dump() for name in ("model", "protocol", "search")},
            }
        )
        with RolloutWorker(run, [atlas_engine.url], atlas_search, tmp_path / "images") as worker:
            for prompt in asked.values():
                (t,) = worker.generate([prompt], step=0, indices=[0], weight_version=None, group_size=1)
                whole = complete(gateway, ask(prompt), seed=seed, temperature=1, extra_body={"search": {"trace": True}})
                trace = whole.trace  # pyright: ignore
                assert trace["token_ids"] == t.token_ids.tolist() and trace["loss_mask"] == t.loss_mask.tolist()
                assert trace["logprobs"] == pytest.approx(t.logprobs.tolist(), abs=1e-4)
                assert [x["text"] for x in trace["turns"]] == [x.text for x in t.turns]


def test_sampling_without_a_seed_is_not_always_the_same(gateway, asked):
    """And with one it is."""
    prompt = asked["known"]

    def tokens(**options) -> tuple[int, ...]:
        said = complete(gateway, ask(prompt), temperature=2, extra_body={"search": {"trace": True, "tools": []}}, **options)
        return tuple(said.trace["token_ids"])  # pyright: ignore

    assert len({tokens() for _ in range(8)}) > 1
    assert len({tokens(seed=7) for _ in range(2)}) == 1


# ------------------------------------------------------------------------------------------------------- around it
def test_models(gateway):
    import openai

    client = gateway.client()
    assert [m.id for m in client.models.list()] == ["atlas", "atlas:no-search"]
    assert client.models.retrieve("atlas:no-search").id == "atlas:no-search"
    ModelList.model_validate(gateway.get("/v1/models").json())
    with pytest.raises(openai.NotFoundError) as e:
        client.models.retrieve("gpt-4o")
    assert e.value.code == "model_not_found"


ERRORS = [
    ({"model": "gpt-4o"}, "NotFoundError", "model", "model_not_found"),
    ({"n": 2}, "BadRequestError", "n", "unsupported"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "BadRequestError", "tools", "unsupported"),
    ({"response_format": {"type": "json_object"}}, "BadRequestError", "response_format.type", "unsupported"),
    ({"logprobs": True}, "BadRequestError", "logprobs", "unsupported"),
    ({"stop": ["x"]}, "BadRequestError", "stop", "unsupported"),
    ({"top_p": 0.5}, "BadRequestError", "top_p", "unsupported"),
    ({"temperature": 3}, "BadRequestError", "temperature", "invalid_value"),
    ({"max_tokens": 0}, "BadRequestError", "max_tokens", "invalid_value"),
    ({"messages": []}, "BadRequestError", "messages", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "BadRequestError", "messages[0]", "invalid_value"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "BadRequestError", "messages[0]", "invalid_value"),
    ({"messages": [{"role": "user", "content": " "}]}, "BadRequestError", "messages[0]", "invalid_value"),
    ({"messages": [{"role": "user", "content": "a " * 99}]}, "BadRequestError", "messages", "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "a" * 10**6}]}, "BadRequestError", "messages", "context_length_exceeded"),
    ({"extra_body": {"search": {"engine": "x"}}}, "BadRequestError", "search.engine", "unknown_parameter"),
    ({"extra_body": {"search": {"server": "http://x"}}}, "BadRequestError", "search.server", "invalid_value"),
    ({"extra_body": {"search": {"tools": ["web"]}}}, "BadRequestError", "search.tools[0]", "invalid_value"),
    ({"extra_body": {"foo": 1}}, "BadRequestError", "foo", "unknown_parameter"),
]


@pytest.mark.parametrize(("change", "kind", "param", "code"), ERRORS)
def test_errors_name_what_is_wrong(gateway, change, kind, param, code):
    import openai

    with pytest.raises(getattr(openai, kind)) as e:
        complete(gateway, **{"messages": [{"role": "user", "content": "who ?"}], "stream": True, **change})
    assert (e.value.param, e.value.code) == (param, code), e.value.message


def test_what_clients_send_out_of_habit_does_no_harm(gateway):
    habits = {
        "user": "u",
        "metadata": {"a": "b"},
        "top_p": 1,
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "stop": None,
    }
    habits |= {"logprobs": False, "store": False, "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}}
    whole = complete(gateway, [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "who ?"}], **habits)
    assert whole.choices[0].finish_reason in ("stop", "length")


def test_a_deadline_is_a_503_that_clients_do_not_repeat(gateway, asked):
    import openai

    with pytest.raises(openai.InternalServerError) as e:
        complete(gateway, ask(asked["both"]), extra_body={"search": {"deadline_s": 0.001}})
    assert e.value.status_code == 503 and e.value.code == "deadline_exceeded"
    assert e.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/models/atlas", 405),
        ("PUT", "/health", 405),
        ("GET", "/v1/embeddings", 404),
        ("POST", "/v1/", 404),
        ("GET", "/nothing", 404),
    ],
)
def test_unknown_paths_and_methods_are_in_the_envelope(gateway, method, path, status):
    import httpx

    r = httpx.request(method, gateway.url + path, trust_env=False)
    assert r.status_code == status and set(r.json()["error"]) == {"message", "type", "param", "code"}
    assert status != 405 or r.headers["allow"]
    assert r.headers["x-request-id"]


def test_health_and_metrics(gateway, asked):
    Health.model_validate(gateway.get("/health").json())
    assert gateway.get("/health").json()["engines"] == {"up": 1, "total": 1}
    complete(gateway, ask(asked["text"]))
    said = gateway.get("/metrics").text
    assert 'mmsr1_gateway_searches_total{kind="text",status="ok"}' in said
    assert "mmsr1_gateway_first_event_seconds_count" in said


def test_one_line_of_json_a_request_and_nothing_of_what_was_said(gateway, asked, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        r = gateway.post({"model": "atlas", "messages": ask(asked["text"])}, headers={"authorization": "Bearer sk-secret"})
    line = json.loads(caplog.records[-1].message)
    assert line["id"] == r.headers["x-request-id"] and line["status"] == 200 and line["outcome"] == "answered"
    assert line["searches"] == 1 and line["turns"] == 2 and line["completion_tokens"] > 0 and line["first_event_s"] > 0
    said = caplog.text
    assert asked["text"].question not in said and "sk-secret" not in said and "base64" not in said


def test_a_page_of_another_name_cannot_call_us(gateway):
    for host in ("evil.test", "evil.test:8000", "localhost.evil.test", "10.0.0.1"):
        r = gateway.get("/v1/models", headers={"host": host})
        assert r.status_code == 403 and r.json()["error"]["code"] == "unknown_host"
    for host in ("localhost:1", "127.0.0.1", "[::1]:80", "[::1]"):
        assert gateway.get("/v1/models", headers={"host": host}).status_code == 200
