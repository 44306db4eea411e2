"""The verbs export, import and stats: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from store_fixtures import make, rows

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.search.store.store import KINDS
from megatron_mmsr1.search.verbs import export_verb, import_verb, stats


def test_the_verbs_as_tables_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, snap = (str(tmp_path / n) for n in ("a.sqlite", "b.sqlite", "a.snap"))
    ident = make(tmp_path / "a.sqlite", rows(60), {"text": {"name": "[bold]serper", "version": "1", "local": False}})
    export_verb(a, snap, True)
    exported = json.loads(capsys.readouterr().out)
    assert (exported["manifest"]["id"], exported["file_bytes"]) == (ident, Path(snap).stat().st_size)
    import_verb(snap, b, True)
    imported = json.loads(capsys.readouterr().out)
    assert (imported["id"], imported["added"], imported["conflicts"]) == (ident, 60, 0)
    assert imported["manifest"] == exported["manifest"]
    stats(b, True)
    counted = json.loads(capsys.readouterr().out)
    assert counted["snapshot"] == {"id": ident, "entries": dict.fromkeys(KINDS, 10)}
    assert (counted["contents"], counted["first"]) == (exported["manifest"]["contents"], exported["manifest"]["created"])
    for show in (
        lambda: export_verb(a, snap + "2", False),
        lambda: import_verb(snap, b, False),
        lambda: stats(b, False),
    ):
        show()
        out, err = capsys.readouterr()
        assert ident in out
        assert "[bold]serper" in out  # nothing that was recorded is markup
        assert "outcome" in out
        assert not err
    make(tmp_path / "empty.sqlite", [])
    stats(str(tmp_path / "empty.sqlite"), False)
    assert "nothing yet" in capsys.readouterr().out


ANSWER = {
    "mode": "record",
    "snapshot": {"id": "0123456789abcdef", "entries": {"text": 12, "page": 30}},
    "backends": {"text": {"name": "serper", "version": "1", "local": False}},
    "upstreams": {
        "serper": {
            "statuses": {"ok": 11, "timeout": 1},
            "breaker": "closed",
            "breaker_turns": {"open": 2},
            "retries": 3,
            "usd": 0.012,
        }
    },
    "calls": {"text": {"ok": 20, "timeout": 1}, "image": {}},
    "cache_hits": {"text": 8, "image": 0},
    "degraded": {"text": 2, "image": 0},
    "spend": [{"run": "r", "day": "2026-01-02", "backend": "serper", "calls": 12, "usd": 0.012}],
    "seconds": 61.5,
}


def serve(code: int, body: bytes) -> tuple[HTTPServer, str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code if self.path == "/v1/stats" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def test_a_servers_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    server, url = serve(200, json.dumps(ANSWER).encode())
    try:
        stats(url + "/", True)
        assert json.loads(capsys.readouterr().out) == ANSWER
        stats(url, False)
        out = " ".join(capsys.readouterr().out.split())
        for words in (
            "0123456789abcdef",
            "ok 11, timeout 1",
            "closed (opened 2 times)",
            "$0.012",
            "text ok 20, timeout 1 8 2",
            "62 s",
        ):
            assert words in out
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(RunError, match=rf"no search server answers at {url}"):
        stats(url, True)


@pytest.mark.parametrize(("code", "body"), [(404, b"{}"), (200, b"[]"), (200, b"<html>"), (500, b""), (200, b"\xff")])
def test_what_is_no_search_server_is_said(code: int, body: bytes) -> None:
    server, url = serve(code, body)
    try:
        with pytest.raises(RunError, match=rf"{url}/v1/stats answered HTTP {code} without statistics"):
            stats(url, True)
    finally:
        server.shutdown()
        server.server_close()


def test_statistics_of_nothing() -> None:
    with pytest.raises(UsageError, match="no search store at none"):
        stats("none.sqlite", True)
    with pytest.raises(RunError, match="no search server answers at http://"):
        stats("http://no host", True)
