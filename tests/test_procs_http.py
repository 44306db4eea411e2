"""The client for inside traffic: one deadline over all, a bound on what is read, no proxy, no redirect."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.procs.http import Unanswered, answers, get, post
from megatron_mmsr1.procs.ports import free_port


@contextlib.contextmanager
def speaking(talk: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server that reads one request's beginning and then says what `talk` says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    c, _ = listener.accept()
                    with c, contextlib.suppress(OSError):
                        talk(c, c.recv(65536))

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def saying(*parts: bytes, pause_s: float = 0.0) -> Callable[[socket.socket, bytes], None]:
    def talk(c: socket.socket, _: bytes) -> None:
        for part in parts:
            c.sendall(part)
            time.sleep(pause_s)

    return talk


def test_an_answer_and_what_was_asked() -> None:
    asked: list[bytes] = []

    def echo(c: socket.socket, request: bytes) -> None:
        asked.append(request)
        c.sendall(b'HTTP/1.1 201 Created\r\ncontent-length: 9\r\n\r\n{"a": 12}')

    with speaking(echo) as url:
        a = post(f"{url}/path?q=1", {"b": "é"})
        assert (a.status, a.ok, a.json()) == (201, True, {"a": 12})
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /path?q=1 HTTP/1.1\r\n") and b"application/json" in head
    assert body in (b"", b'{"b": "\\u00e9"}')  # it may come in a second packet


@given(body=st.binary(max_size=200), status=st.sampled_from([200, 404, 503]), chunked=st.booleans(), close=st.booleans())
def test_any_body_comes_through_whole(body: bytes, status: int, chunked: bool, close: bool) -> None:
    if chunked:
        rest = b"transfer-encoding: chunked\r\n\r\n"
        rest += (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    elif close:
        rest = b"connection: close\r\n\r\n" + body
    else:
        rest = b"content-length: %d\r\n\r\n%s" % (len(body), body)
    with speaking(saying(b"HTTP/1.1 %d X\r\n" % status + rest)) as url:
        a = get(url)
    assert (a.status, a.body, a.ok) == (status, body, status == 200)


def test_one_deadline_over_an_answer_that_drips() -> None:
    """Each byte comes well within the time; all of them do not."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
    for parts in ((head, *[b"x"] * 1000), [b"H"] * 1000):
        with speaking(saying(*parts, pause_s=0.05)) as url, pytest.raises(Unanswered, match=r"within 0\.3 s"):
            get(url, timeout_s=0.3)


def test_no_more_is_read_than_asked_for() -> None:
    with speaking(saying(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 100)) as url:
        assert len(get(url, max_bytes=100).body) == 100
        with pytest.raises(Unanswered, match="more than 99 bytes"):
            get(url, max_bytes=99)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",  # torn
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\xff\xfe\r\n\r\n",
    ],
)
def test_what_is_no_whole_answer(said: bytes) -> None:
    with speaking(saying(said)) as url, pytest.raises(Unanswered, match="127"):
        get(url)


def test_nobody_listens_and_no_url() -> None:
    port = free_port()
    with pytest.raises(Unanswered, match="refused"):
        get(f"http://127.0.0.1:{port}/")
    for url in ("localhost", "ftp://x", "http://", "http://[", "http://x:99999/"):
        with pytest.raises(Unanswered, match="URL"):
            get(url)
    assert not answers(f"http://127.0.0.1:{port}/")


def test_a_redirect_is_no_success_and_is_not_followed() -> None:
    with speaking(saying(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")) as url:
        assert get(url).status == 302 and not answers(url)


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with speaking(saying(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")) as url:
        assert answers(url)


def test_no_json_says_so() -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>"
    with speaking(saying(page)) as url, pytest.raises(Unanswered, match=r"no JSON.*<html>"):
        get(url).json()
