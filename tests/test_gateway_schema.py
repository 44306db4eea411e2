"""Schemathesis over the OpenAPI document: whatever is sent, answers are the ones that the document declares."""

from __future__ import annotations

import pytest
import schemathesis
from examples import examples
from gateway_fixtures import served
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_fixtures import atlas_config

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance, response_headers_conformance]
OPERATIONS = [("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/v1/models/{model}", "GET")]
OPERATIONS += [("/health", "GET"), ("/metrics", "GET")]


@pytest.fixture(scope="module")
def gateway(atlas_world, atlas_engine, atlas_search):
    with served(atlas_config(atlas_world, gateway={"name": "atlas"}), [atlas_engine.url], atlas_search) as g:
        yield g


@pytest.fixture(scope="module")
def document(gateway):
    return gateway.get("/openapi.json").json()


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [*((*o, GenerationMode.POSITIVE) for o in OPERATIONS), (*OPERATIONS[0], GenerationMode.NEGATIVE)],
)
def test_answers_are_the_declared_ones(gateway, document, path, method, mode):
    operation = schemathesis.openapi.from_dict(document)[path][method]
    seen: set[int] = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples(80 if method == "POST" else 15),
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    def exchange(case) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            # As far as random data may go: an existing model, and one that has little to say.
            case.body["model"], case.body["max_tokens"] = "atlas", 4
        case.headers = {k: v for k, v in (case.headers or {}).items() if k.lower() != "host"}
        response = case.call(base_url=gateway.url, timeout=60)
        seen.add(response.status_code)
        assert response.status_code < 500 or response.status_code == 503, response.text
        case.validate_response(response, checks=CHECKS)

    exchange()
    # Of a model or a conversation drawn at random there may be none that exists; the others answer.
    assert mode is GenerationMode.POSITIVE or 200 not in seen
    assert 200 in seen or mode is GenerationMode.NEGATIVE or path in ("/v1/models/{model}", "/v1/chat/completions")


def test_the_document_is_of_these_operations(document):
    assert {(p, m.upper()) for p, ms in document["paths"].items() for m in ms} == set(OPERATIONS)
    request = document["components"]["schemas"]["ChatRequest"]
    assert request["additionalProperties"] is False and set(request["required"]) == {"model", "messages"}
    assert not any("422" in op["responses"] for ms in document["paths"].values() for op in ms.values())


def test_openais_own_types_take_the_answers(gateway):
    """Strictly: what pydantic of openai-python would otherwise let pass unread."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{gateway.url}/v1", api_key="any", _strict_response_validation=True)
    messages = [{"role": "user", "content": "who ?"}]
    assert client.chat.completions.create(model="atlas", messages=messages).object == "chat.completion"  # pyright: ignore
    for c in client.chat.completions.create(model="atlas", messages=messages, stream=True):  # pyright: ignore
        assert c.object == "chat.completion.chunk"
