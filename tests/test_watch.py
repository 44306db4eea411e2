"""`mmsr1 watch`: what its server answers, and that it reads a run which another process writes."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from report_fixtures import make_run, write_steps

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.report.watch import Server, server


@contextmanager
def watching(*runs: Path) -> Iterator[Server]:
    with server(runs) as s:
        thread = Thread(target=s.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield s
        finally:
            s.shutdown()
            thread.join()


def ask(s: Server, path: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", s.server_address[1], timeout=60)
    try:
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def told(s: Server) -> dict[str, Any]:
    return json.loads(ask(s, "/data")[2])


def test_only_the_page_and_its_data_are_there_under_strict_headers(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, steps=3)
    with watching(run) as s:
        assert s.url.startswith("http://127.0.0.1:")
        for path in ("/", "/data"):
            status, headers, body = ask(s, path)
            assert status == 200 and len(body) > 500
            assert ask(s, path, "HEAD")[::2] == (200, b"")
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["cross-origin-resource-policy"] == "same-origin" and "date" in headers
        for path in (
            "/config.yaml",
            "/../config.yaml",
            "/%2e%2e/config.yaml",
            "//etc/passwd",
            "/data/",
            "/data?x",
            "/metrics.jsonl",
        ):
            status, headers, body = ask(s, path)
            assert status == 404 and b"nothing else" in body and headers["content-type"].startswith("text/plain")
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(s, "/", method)[0] == 501


def test_another_site_s_name_for_this_machine_gets_nothing(tmp_path: Path) -> None:
    """DNS rebinding: a page of evil.test that resolves to 127.0.0.1."""
    run, _ = make_run(tmp_path, steps=2)
    with watching(run) as s:
        port = s.server_address[1]
        for host in ("evil.test", f"evil.test:{port}", "127.0.0.1.evil.test"):
            assert ask(s, "/data", host=host)[0] == 421
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}"):
            assert ask(s, "/data", host=host)[0] == 200


@pytest.mark.long
def test_a_growing_run_a_line_half_written_and_a_restart(tmp_path: Path) -> None:
    run, cfg = make_run(tmp_path, steps=3)
    cfg.train.steps = 9
    with watching(run) as s:
        first = told(s)
        assert (first["steps"], first["of"], first["error"]) == (3, 3, "") and first["ago"] < 600
        assert told(s)["stamp"] == first["stamp"]
        write_steps(run, cfg, range(3, 6))
        second = told(s)
        assert second["steps"] == 6 and second["stamp"] != first["stamp"] and second["parts"] != first["parts"]
        with (run / "metrics.jsonl").open("a") as f:  # another process, in the middle of a line
            f.write('{"step": 6, "ti')
            f.flush()
            assert (told(s)["steps"], told(s)["error"]) == (6, "")
        write_steps(run, cfg, range(4, 5))  # the run resumes at step 4, and cuts what it does again
        assert told(s)["steps"] == 5
        assert ask(s, "/")[0] == 200


@pytest.mark.long
def test_what_cannot_be_read_is_said_and_the_numbers_stay(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, steps=3)
    with watching(run) as s:
        assert told(s)["error"] == ""
        good = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text("nonsense\n" + good)
        bad = told(s)
        assert "metrics.jsonl:1" in bad["error"] and bad["steps"] == 3 and bad["data"]["plots"]
        assert ask(s, "/")[0] == 503
        (run / "metrics.jsonl").write_text(good)
        assert told(s)["error"] == "" and ask(s, "/")[0] == 200


def test_what_is_no_run_and_a_taken_port_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.yaml"):
        server([tmp_path])
    run, _ = make_run(tmp_path, steps=2)
    with watching(run) as s, pytest.raises(UsageError, match=r"cannot listen at 127\.0\.0\.1"):
        server([run], port=s.server_address[1])


def test_the_command_says_where_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, steps=2)
    command = [sys.executable, "-m", "megatron_mmsr1.cli", "watch", str(run), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as p:
        assert p.stderr is not None
        line = p.stderr.readline()
        port = int(line.partition("http://127.0.0.1:")[2].partition("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/data")
        assert json.loads(connection.getresponse().read())["steps"] == 2
        connection.close()
        p.send_signal(signal.SIGINT)
        assert p.wait(60) == 130
