"""`mmsr1 serve` as a person runs it: it is ready, it answers, an engine dies and comes back, one Ctrl-C ends all of it."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import serving_fixtures as f
import yaml
from engine_fixtures import part_of
from loop_fixtures import COLD_START, ROOT

import megatron_mmsr1.cli.entry as cli
from megatron_mmsr1.procs.guard import descendants
from megatron_mmsr1.procs.ports import port_is_free
from serving import settings

if TYPE_CHECKING:
    import openai

READY = re.compile(r"API +(http://[^ ]+)/v1")


class Served:
    """The command, running."""

    def __init__(self, directory: Path, *args: str, verb: str = "serve") -> None:
        self.out, self.err = directory / "out.txt", directory / "err.txt"
        command = [
            sys.executable,
            "-m",
            "megatron_mmsr1.cli",
            verb,
            *args,
            "gateway.port=0",
            "--state",
            str(directory / "state"),
        ]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            # A session of its own: Ctrl-C is for it alone, and not for the tests.
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True)
        deadline = time.monotonic() + 600
        while not (found := READY.search(self.out.read_text())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.1)
        self.url = found[1]
        self.family = descendants(self.process.pid)

    def client(self, key: str = "-") -> openai.OpenAI:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=10, trust_env=False)

    def end(self, number: signal.Signals) -> int:
        """The exit code, with the family gone."""
        self.family += descendants(self.process.pid)
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert not [p for p in self.family if alive(p)]
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def ask(client: openai.OpenAI, world: Path, kind: str) -> str:
    p = f.questions(world)[kind]
    picture = "data:image/png;base64," + base64.b64encode(p.images[0]).decode()
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": p.question}]
    said = client.chat.completions.create(model="atlas", messages=[{"role": "user", "content": content}])  # type: ignore[arg-type]
    return said.choices[0].message.content or ""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, atlas_world: Path) -> Path:
    """A checkpoint as `mmsr1 export` leaves it: weights, with their serving.yaml beside."""
    out = tmp_path_factory.mktemp("served") / "atlas"
    shutil.copytree(COLD_START, out)
    (out / settings.FILE).write_text(yaml.safe_dump(f.atlas_config(atlas_world).model_dump(mode="json")))
    return out


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    s = Served(tmp_path_factory.mktemp("serve"), str(model), "--no-demo", "engine.hung_after_s=40")
    yield s
    s.kill()


def test_it_answers(served, atlas_world):
    assert served.health().json()["status"] == "ok"
    assert ask(served.client(), atlas_world, "both") == f.questions(atlas_world)["both"].golden_answers[0]
    with served.client() as client:
        assert [m.id for m in client.models.list()] == ["atlas", "atlas:no-search"]


def test_an_engine_that_is_killed_comes_back(served, atlas_world):
    import openai

    os.kill(part_of(served.process.pid, "server"), signal.SIGKILL)
    with pytest.raises(openai.APIStatusError) as e:  # a clear error while it is away
        while True:
            ask(served.client(), atlas_world, "text")
    assert e.value.status_code in (502, 503)
    deadline = time.monotonic() + 600
    while served.health().json()["status"] != "ok":
        assert served.process.poll() is None and time.monotonic() < deadline, served.err.read_text()
        time.sleep(0.2)
    assert ask(served.client(), atlas_world, "text") == f.questions(atlas_world)["text"].golden_answers[0]
    said = served.err.read_text()
    assert "SIGKILL" in said and "the engine is started again (1)" in said


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced(served, atlas_world):
    """Its processes live and its port is open; no token comes any more."""
    os.kill(part_of(served.process.pid, "scheduler"), signal.SIGSTOP)
    deadline = time.monotonic() + 480
    while "the engine is back" not in served.err.read_text().partition("has not answered")[2]:
        assert served.process.poll() is None and time.monotonic() < deadline, served.err.read_text()
        time.sleep(0.2)
    assert ask(served.client(), atlas_world, "text") == f.questions(atlas_world)["text"].golden_answers[0]


def test_one_ctrl_c_ends_all_of_it(served):
    assert served.end(signal.SIGINT) == 0
    port = int(served.url.rpartition(":")[2])
    assert port_is_free(port) and "Traceback" not in served.err.read_text()


def test_in_front_of_servers_that_run_already(model, atlas_engine, atlas_search, atlas_world, tmp_path):
    s = Served(tmp_path, str(model), "--no-demo", "--engine", atlas_engine.url, "--search", atlas_search)
    try:
        assert ask(s.client(), atlas_world, "text") == f.questions(atlas_world)["text"].golden_answers[0]
        assert not s.family  # nothing was started
        assert s.end(signal.SIGTERM) == 0
    finally:
        s.kill()
    atlas_engine.check()
    assert httpx.get(f"{atlas_search}/readyz", trust_env=False).status_code == 200


def test_without_search(model, atlas_engine, atlas_world, tmp_path):
    s = Served(tmp_path, str(model), "--no-demo", "--no-search", "--engine", atlas_engine.url)
    try:
        assert ask(s.client(), atlas_world, "known")
    finally:
        s.kill()


def test_keys(model, atlas_engine, tmp_path, capfd):
    import openai

    keys = tmp_path / "keys"
    assert cli.main(["serve", str(model), f"gateway.keys={keys}", "--new-key", "anna"]) == 0
    key = capfd.readouterr().out.strip()
    assert key not in keys.read_text() and cli.main(["serve", f"gateway.keys={keys}", "--new-key", "anna"]) == 2
    assert "has a key named anna" in capfd.readouterr().err
    s = Served(tmp_path, str(model), "--no-demo", "--no-search", "--engine", atlas_engine.url, f"gateway.keys={keys}")
    try:
        with pytest.raises(openai.AuthenticationError):
            s.client().models.list()
        assert s.client(key).models.list().data
        assert key not in s.err.read_text() + s.out.read_text()
    finally:
        s.kill()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "name a checkpoint"),
        (["gateway.port=0"], "name a checkpoint"),
        (["{none}"], "config.json is missing"),
        (["{cold}"], "nothing to search"),
        (["{cold}"], "--no-search"),
        (["{model}", "search.corpus={none}"], "no corpus.jsonl"),
        (["{model}", "gateway.prot=1"], "did you mean port?"),
        (["{model}", "gateway.host=0.0.0.0"], "--new-key"),
        (["{model}", "gateway.keys={none}"], "cannot be read"),
        (["{model}", "model.max_pixels=999999"], "exceeds"),
        (["{model}", "--config", "{none}"], "cannot be read: No such file"),
        (["{model}", "--engine", "localhost"], "no URL of a server"),
        (["{model}", "--state", "{model}/config.json"], "--state"),
        pytest.param(  # told by the engine's own library, in a process
            ["{model}", "engine.sglang.mem_fraction_statik=0.5", "--no-search"],
            "did you mean mem_fraction_static",
            marks=pytest.mark.process,
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else " ".join(v) or "nothing",
)
def test_wrong_usage(args, said, model, tmp_path, capfd):
    values = {"none": tmp_path / "nothing", "cold": COLD_START, "model": model}
    args = [a.format(**values) for a in args]
    state = [] if "--state" in args else ["--state", str(tmp_path / "state")]
    assert cli.main(["serve", *args, "--no-demo", *state]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.long
def test_servers_that_do_not_answer(model, tmp_path, capfd):
    for flag in ("--engine", "--search"):
        assert cli.main(["serve", str(model), "--no-demo", "--state", str(tmp_path), flag, "http://127.0.0.1:9"]) == 1
        said = capfd.readouterr().err
        assert flag in said and "does not answer" in said


def test_an_engine_of_another_model(model, atlas_engine, checkpoints, tmp_path, capfd):
    args = ["serve", str(checkpoints["random"]), "--no-demo", "--no-search", "--state", str(tmp_path)]
    assert cli.main([*args, "--engine", atlas_engine.url]) == 2
    assert "tokenizer" in capfd.readouterr().err


def test_a_taken_port_is_named(model, atlas_engine, tmp_path, capfd):
    port = atlas_engine.url.rpartition(":")[2]
    args = ["serve", str(model), "--no-demo", "--no-search", "--state", str(tmp_path), "--engine", atlas_engine.url]
    assert cli.main([*args, f"gateway.port={port}"]) == 1
    assert f"gateway.port={port}" in capfd.readouterr().err


@pytest.mark.slow
def test_two_engines_behind_sglangs_router(model, atlas_world, tmp_path):
    s = Served(tmp_path, str(model), "--no-demo", "replicas=2", "router=true")
    try:
        gold = {k: p.golden_answers[0] for k, p in f.questions(atlas_world).items()}
        for kind in ("both", "text", "image", "picture"):
            assert ask(s.client(), atlas_world, kind) == gold[kind]
        assert s.end(signal.SIGINT) == 0
    finally:
        s.kill()


def test_the_demo_from_nothing(tmp_path):
    """One command: its world, its model, its search, its app."""
    pytest.importorskip("gradio")
    s = Served(tmp_path, verb="demo")
    try:
        page = httpx.get(f"{s.url}/", timeout=60, trust_env=False)
        assert page.status_code == 200 and "default-src" in page.headers["content-security-policy"]
        world = tmp_path / "state" / "world"
        # The cold start knows how to search, not when: it is sure of what it knows, and only answers the rest.
        assert ask(s.client(), world, "known") == f.questions(world)["known"].golden_answers[0]
        assert ask(s.client(), world, "both")
        assert s.end(signal.SIGINT) == 0
    finally:
        s.kill()


def test_the_app_is_behind_the_same_keys(model, atlas_engine, atlas_search, tmp_path, capfd):
    pytest.importorskip("gradio")
    keys = tmp_path / "keys"
    assert cli.main(["serve", f"gateway.keys={keys}", "--new-key", "anna"]) == 0
    key = capfd.readouterr().out.strip()
    s = Served(tmp_path, str(model), "--engine", atlas_engine.url, "--search", atlas_search, f"gateway.keys={keys}")
    try:
        with httpx.Client(base_url=s.url, trust_env=False, timeout=60) as client:
            assert client.get("/").status_code == 401 and client.get("/demo/app.js").status_code == 401
            assert client.get("/", auth=("anna", key)).status_code == 200
            assert client.get("/v1/models").status_code == 401  # of the API's own asking
            assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    finally:
        s.kill()
