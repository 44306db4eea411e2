"""How the first node and the others talk: lines of JSON over TCP, after each side has shown that it knows the job's token.

The token itself never travels. What travels after is neither encrypted nor signed: the job's network must keep others out, as
it must for NCCL and the rendezvous store.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from typing import Any

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.untyped import is_dict

HEAD, TOKEN = "MMSR1_HEAD", "MMSR1_JOB_TOKEN"  # environment: ADDRESS:PORT of the first node's process, the job's secret
BEAT_S, LOST_AFTER_S = 5.0, 60.0
MAX_LINE = 8 << 20
_GREETING_S = 10.0


class Lost(RunError):
    """The other side has gone, or is silent."""


def head_address() -> tuple[str, int] | None:
    """What the job's script says; None outside a job of several nodes."""
    said = os.environ.get(HEAD)
    if not said:
        return None
    host, _, port = said.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{HEAD}={said} must be ADDRESS:PORT")
    return host, int(port)


def token() -> str:
    found = os.environ.get(TOKEN, "")
    if len(found) < 16:
        raise UsageError(f"{TOKEN} must hold the job's secret, 16 characters or more; the scripts of scripts/slurm make one")
    return found


class Line:
    """One connection. `send` is safe from several threads; `received` is one reader's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._lock = sock, threading.Lock()
        sock.settimeout(LOST_AFTER_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = sock.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        """Raises Lost."""
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._sock.sendall(data)
        except OSError as e:
            raise Lost(f"the connection is gone ({e})") from None

    def receive(self) -> dict[str, Any]:
        """The next message. Raises Lost at the end, after `LOST_AFTER_S` of silence, or for what is no message."""
        try:
            data = self._file.readline(MAX_LINE)
        except TimeoutError:
            raise Lost(f"silent for {LOST_AFTER_S:.0f} s") from None
        except (OSError, ValueError) as e:
            raise Lost(f"the connection is gone ({e})") from None
        if not data.endswith(b"\n"):
            raise Lost("the connection was closed")
        try:
            message = json.loads(data)
        except ValueError:
            raise Lost("it sent what is no message") from None
        if not is_dict(message):
            raise Lost("it sent what is no message")
        return message

    def received(self) -> Iterator[dict[str, Any]]:
        """Messages but for beats, until Lost is raised."""
        while True:
            message = self.receive()
            if message.get("what") != "beat":
                yield message

    def beat(self, done: threading.Event) -> None:
        """Say every few seconds that this side lives; for a thread. Ends when `done` is set or the other side has gone."""
        while not done.wait(BEAT_S):
            try:
                self.send({"what": "beat"})
            except Lost:
                return

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it was closed by the other side
            self._sock.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._sock.close()

    # -------------------------------------------------------------------------------------------------------- greeting
    def greet_head(self, secret: str, who: dict[str, Any]) -> None:
        """The other nodes' side. Raises Lost if the other side does not know the token."""
        mine = secrets.token_hex(16)
        with _Patience(self._sock):
            self.send({"what": "nonce", "nonce": mine})
            answer = self.receive()
            if not hmac.compare_digest(str(answer.get("proof", "")), _proof(secret, "head", mine)):
                raise Lost("what answers there does not know this job's token")
            self.send({"what": "hello", "proof": _proof(secret, "node", str(answer.get("nonce"))), "who": who})

    def greet_node(self, secret: str) -> dict[str, Any]:
        """The first node's side: who it is. Raises Lost if it does not know the token."""
        mine = secrets.token_hex(16)
        with _Patience(self._sock):
            nonce = str(self.receive().get("nonce"))
            self.send({"what": "nonce", "nonce": mine, "proof": _proof(secret, "head", nonce)})
            hello = self.receive()
        who = hello.get("who")
        if not hmac.compare_digest(str(hello.get("proof", "")), _proof(secret, "node", mine)) or not is_dict(who):
            raise Lost("it does not know this job's token")
        return who


class _Patience:
    """A short time-out inside the block, so that who connects and says nothing holds nobody."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __enter__(self) -> None:
        self._sock.settimeout(_GREETING_S)

    def __exit__(self, *_: object) -> None:
        self._sock.settimeout(LOST_AFTER_S)


def _proof(secret: str, side: str, nonce: str) -> str:
    """Which side is part of it: else one could be answered with what it sent itself."""
    return hmac.new(secret.encode(), f"{side}:{nonce}".encode(), hashlib.sha256).hexdigest()
