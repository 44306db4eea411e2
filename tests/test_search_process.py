"""The server as a process: its port, its signals, its exit codes, and its parent's death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from search_fixtures import write_corpus

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.search.client import SearchClient
from megatron_mmsr1.search.server.launch import launch
from megatron_mmsr1.search.server.main import serve


def taken() -> tuple[socket.socket, int]:
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen()
    return s, s.getsockname()[1]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_mmsr1.search.server.main", *args], capture_output=True, text=True, timeout=60
    )


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    sock, port = taken()
    cfg = SearchConfig(corpus=str(write_corpus(tmp_path)))
    with sock:
        with pytest.raises(RunError, match=f"port {port} on 127.0.0.1"):
            serve(cfg, port=port)
        with pytest.raises(RunError, match=f"port {port} on 127.0.0.1"):
            launch(cfg, cache_path=None, log=tmp_path / "log", port=port)
        done = run("--json", cfg.model_dump_json(), "--port", str(port))
    assert (done.returncode, f"port {port}" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_the_persons_errors_exit_2(tmp_path: Path) -> None:
    for args, says in (
        (("--json", "{}"), "search.corpus is not set"),
        (("--json", '{"corpus":"x","korpus":1}'), "korpus"),
        (("--json", f'{{"corpus":"{tmp_path}/none"}}'), "no corpus.jsonl"),
        (("--config", str(tmp_path / "none.yaml")), "no config at"),
    ):
        done = run(*args)
        assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)ended with exit code 2.*no corpus.jsonl"):
        launch(SearchConfig(corpus=str(tmp_path)), cache_path=None, log=tmp_path / "log")


def test_a_fixed_port_and_a_config_file(tmp_path: Path) -> None:
    sock, port = taken()
    sock.close()
    write_corpus(tmp_path)
    (tmp_path / "run.yaml").write_text(f"model: {{path: none}}\nsearch: {{corpus: {tmp_path}}}\n")
    args = ["--config", str(tmp_path / "run.yaml"), "--port", str(port)]
    command = [sys.executable, "-m", "megatron_mmsr1.search.server.main", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"search server on port {port}\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close()


async def in_flight(url: str) -> float:
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url + "/metrics").read().decode())
    return float(text.split("\nmmsr1_search_in_flight ")[1].split("\n")[0])


async def test_sigterm_lets_calls_in_flight_end(tmp_path: Path) -> None:
    cfg = SearchConfig(corpus=str(write_corpus(tmp_path / "w")), latency_s=2.0)
    server = launch(cfg, cache_path=tmp_path / "c.sqlite", log=tmp_path / "log")
    try:
        async with SearchClient(server.url, retries=0) as client:
            calls = [asyncio.create_task(client.text(f"zurimo {i}")) for i in range(20)]
            while await in_flight(server.url) < 20 and not any(c.done() for c in calls):
                await asyncio.sleep(0.02)
            server.child.process.send_signal(signal.SIGTERM)
            assert {r.status for r in await asyncio.gather(*calls)} == {"ok"}
            await asyncio.to_thread(server.child.process.wait, 30)
            assert server.child.process.returncode == 0
            assert (await client.text("zurimo")).status == "upstream_error"
    finally:
        server.stop()


async def test_a_killed_server_gives_typed_errors_and_a_whole_cache(tmp_path: Path) -> None:
    cfg = SearchConfig(corpus=str(write_corpus(tmp_path / "w")))
    server = launch(cfg, cache_path=tmp_path / "c.sqlite", log=tmp_path / "log")
    async with SearchClient(server.url) as client:
        calls = [asyncio.create_task(client.text(f"zurimo {i}")) for i in range(300)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        server.child.process.kill()
        replies = await asyncio.gather(*calls)
    server.stop()
    assert {r.status for r in replies} <= {"ok", "upstream_error"}
    with launch(cfg, cache_path=tmp_path / "c.sqlite", log=tmp_path / "log") as again:
        async with SearchClient(again.url) as client:
            for i, r in enumerate(replies):
                if r.status == "ok":  # what was answered was kept
                    assert (await client.text(f"zurimo {i}")).cached
    assert done


PARENT = """
import sys, threading, time
from pathlib import Path
from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search.server.launch import launch
def go():
    s = launch(SearchConfig(corpus=sys.argv[1]), cache_path=None, log=Path(sys.argv[1]) / "log")
    print(s.child.pid, s.url, flush=True)
if sys.argv[2] == "thread":
    t = threading.Thread(target=go); t.start(); t.join()  # ends, while this process lives on
    time.sleep(1.2)
    print("still here", flush=True)
else:
    go()
time.sleep(600)
"""


def running(p: psutil.Process) -> bool:
    try:
        return p.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("where", ["main", "thread"])
def test_the_server_dies_with_its_parent_and_not_before(tmp_path: Path, where: str) -> None:
    command = [sys.executable, "-c", PARENT, str(write_corpus(tmp_path)), where]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    guard = psutil.Process(int(parent.stdout.readline().split()[0]))
    started = [guard, *guard.children(recursive=True)]
    try:
        if where == "thread":
            assert parent.stdout.readline() == "still here\n"
        assert len(started) > 1 and all(running(p) for p in started)
        assert os.getpgid(guard.pid) == guard.pid  # a group of its own
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 30
        while any(running(p) for p in started) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(running(p) for p in started)
    finally:
        parent.stdout.close()
        if parent.poll() is None:
            parent.kill()
            parent.wait()


def test_a_corpus_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"search\.corpus"):
        serve(SearchConfig())
