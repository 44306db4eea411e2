"""Where the gateway has keys, nobody reaches the app without one."""

from __future__ import annotations

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from serving.keys import Keys, new_key
from serving.login import AppLogin


@pytest.fixture
def key(tmp_path):
    return new_key(tmp_path / "keys", "anna")


@pytest.fixture
async def client(tmp_path, key):
    async def inside(scope, receive, send):
        await PlainTextResponse(f"inside {Request(scope).url.path}")(scope, receive, send)

    transport = httpx.ASGITransport(AppLogin(inside, Keys(tmp_path / "keys")))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_the_key_is_the_password(client, key):
    for name in ("anna", "", "é"):
        assert (await client.get("/", auth=httpx.BasicAuth(name, key))).text == "inside /"
    assert (await client.post("/gradio_api/queue/join", auth=httpx.BasicAuth("a", key))).status_code == 200


@pytest.mark.parametrize(
    "said",
    [None, "Basic", "Basic !!!", "Basic YTpi", "Basic //8=", "Bearer {key}", "Basic {key}", "basic \xff"],
)
async def test_nothing_else_opens(client, key, said):
    headers = {} if said is None else {"authorization": said.format(key=key).encode("latin-1")}
    for path in ("/", "/demo/app.js", "/gradio_api/queue/data", "/health/", "/v1", "//v1/models", "/metricsx"):
        got = await client.get(path, headers=headers)
        assert got.status_code == 401 and got.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health", "/metrics", "/openapi.json"])
async def test_the_api_asks_for_itself(client, path):
    assert (await client.post(path)).text == f"inside {path}"


async def test_another_site_posts_nothing_with_a_browsers_password(client, key):
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        got = await client.post("/x", headers={"sec-fetch-site": site}, auth=httpx.BasicAuth("a", key))
        assert got.status_code == status
