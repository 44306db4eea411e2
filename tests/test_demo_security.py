"""The guard around the mounted app: what is answered, under which policy, and what never reaches Gradio."""

from __future__ import annotations

import base64
import hashlib

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from demo.security import Guard, fault, policy

PAGE = b'<base href="./" /><script>window.a = 1;</script><script src="./x.js"></script><p onclick="b()">x</p>'


class Inner:
    """Answers everything, and keeps what came through."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        self.seen.append((scope["path"], message.get("body", b"")))
        headers = [(b"content-type", b"text/html"), (b"content-length", str(len(PAGE)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": PAGE})


async def call(method: str, path: str, content: bytes = b"") -> tuple[httpx.Response, Inner]:
    inner = Inner()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Guard(inner)), base_url="http://app") as client:
        return await client.request(method, path, content=content), inner


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/assets/index-a_b.js",
        "/theme.css",
        "/gradio_api/queue/data?session_hash=a",
        "/gradio_api/file=/tmp/gradio/a/b.png",
    ],
)
async def test_the_page_gets_what_it_needs_under_the_policy(path: str) -> None:
    response, _ = await call("GET", path)
    assert response.status_code == 200
    rules = {rule.split()[0]: rule.split()[1:] for rule in response.headers["content-security-policy"].split("; ")}
    assert rules["default-src"] == rules["object-src"] == rules["base-uri"] == rules["frame-ancestors"] == ["'none'"]
    assert rules["img-src"] == ["'self'", "data:", "blob:"] and rules["connect-src"] == ["'self'"]
    assert not {"'unsafe-eval'", "'unsafe-inline'", "*", "https:", "http:", "data:"} & set(rules["script-src"])
    assert response.headers["x-content-type-options"] == "nosniff" and response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"),
        ("GET", "/gradio_api/file=http://127.0.0.1:1/a.png"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/vibe-code"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/assets/../../secret\n"),
        ("POST", "/gradio_api/call/submit"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/login"),
        ("PUT", "/gradio_api/queue/join"),
        ("DELETE", "/"),
    ],
)
async def test_what_gradio_serves_besides_is_not_there(method: str, path: str) -> None:
    response, inner = await call(method, path.strip())
    assert response.status_code == 404 and not inner.seen


async def test_only_the_pages_own_scripts_run_inline() -> None:
    response, _ = await call("GET", "/")
    own = base64.b64encode(hashlib.sha256(b"window.a = 1;").digest()).decode()
    assert f"script-src 'self' 'sha256-{own}';" in response.headers["content-security-policy"]
    assert "<base" not in response.text and int(response.headers["content-length"]) == len(response.content)
    assert "sha256" not in policy()


FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/x",
        "HTTPS://evil.test/x",
        " http://a/",
        "ftp://a/",
        "//a/b",
        "file:///etc/passwd",
        "data:image/png;base64,",
        "\\\\host\\share",
    ],
)
async def test_no_event_can_name_a_file_by_its_address(address: str) -> None:
    for body in (
        {"data": [{"files": [{"path": address, **FILE}]}]},
        {"data": [[{"a": {"url": address, "path": "x", **FILE}}]]},
    ):
        response, inner = await call("POST", "/gradio_api/queue/join", orjson.dumps(body))
        assert response.status_code == 400 and not inner.seen


async def test_an_address_that_looks_like_an_upload_is_none() -> None:
    body = {"data": [{"path": "http://evil.test/gradio_api/file=/x", **FILE}]}
    response, _ = await call("POST", "/gradio_api/queue/join", orjson.dumps(body))
    assert response.status_code == 400


async def test_an_uploaded_file_comes_through_as_it_was_sent() -> None:
    own = {"path": "/tmp/gradio/ab/x.png", "url": "http://127.0.0.1:7860/gradio_api/file=/tmp/gradio/ab/x.png", **FILE}
    body = orjson.dumps({"data": [{"text": "what is http://example.test/ ?", "files": [own]}], "fn_index": 1})
    response, inner = await call("POST", "/gradio_api/queue/join", body)
    assert response.status_code == 200 and inner.seen == [("/gradio_api/queue/join", body)]


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"x" * 2_000_000, 413), (b"[" * 100_000, 400)])
async def test_a_body_that_is_no_event_is_refused(body: bytes, status: int) -> None:
    response, inner = await call("POST", "/gradio_api/queue/join", body)
    assert response.status_code == status and not inner.seen


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("path"), inner, max_size=3),
    max_leaves=20,
)


@given(JSON, st.sampled_from(["http://a/", "https://a/x", "file:///x"]), st.sampled_from(["path", "url"]))
def test_an_address_is_found_however_deep(data: object, address: str, key: str) -> None:
    assert fault(orjson.dumps([data, {"x": [{"y": {key: address}}]}]))
