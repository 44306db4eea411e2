"""The gateway as openai-node sees it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from gateway_fixtures import data_uri, engine_load, eventually, served
from serving_fixtures import atlas_config, questions

HERE = Path(__file__).parent / "node"
NPM = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]


@pytest.fixture(scope="module")
def installed() -> None:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    if (HERE / "node_modules" / "openai").is_dir():
        return
    done = subprocess.run(NPM, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"npm ci failed, which needs a registry: {done.stderr[-300:]}")


@pytest.mark.usefixtures("installed")
def test_openai_node(atlas_world, atlas_engine, atlas_search):
    asked = questions(atlas_world)
    cfg = atlas_config(atlas_world, gateway={"name": "atlas"})
    with served(cfg, [atlas_engine.url], atlas_search) as gateway:
        url, picture = f"{gateway.url}/v1", data_uri(asked["picture"].images[0])
        arguments = [url, "atlas", picture, asked["picture"].question, asked["text"].question]
        done = subprocess.run(
            ["node", "client.mjs", *arguments], cwd=HERE, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        python = gateway.client().chat.completions.create(
            model="atlas", messages=[{"role": "user", "content": asked["text"].question}]
        )
        eventually(lambda: engine_load(atlas_engine.url) == 0 and gateway.gateway.limits.inside == 0)
    assert said["vision"]["content"] and said["vision"]["reasoning"]
    stream = said["stream"]
    assert stream["content"] == said["helper"] == python.choices[0].message.content
    assert stream["finish"] == "stop" and stream["toolCalls"] == 0
    assert python.usage and stream["usage"] == python.usage.total_tokens
    assert stream["citations"] == python.citations  # pyright: ignore
    assert stream["steps"] == ["started", "ended"]
    assert said["models"] == ["atlas", "atlas:no-search"]
    assert said["errors"] == [
        {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        {"kind": "BadRequestError", "status": 400, "code": "unsupported", "param": "n"},
        {"kind": "BadRequestError", "status": 400, "code": "invalid_value", "param": "messages"},
    ]
    assert said["cancelled"] == 5
