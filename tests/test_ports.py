"""Ports: free, taken, bound."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs.ports import bind, free_port, port_is_free, require_port


def test_free_and_taken() -> None:
    port = free_port()
    assert 20000 <= port < 32000
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
        s.listen()
        assert not port_is_free(port)
        with pytest.raises(RunError, match=f"port {port} for the engine is taken"):
            require_port(port, "the engine")
        with pytest.raises(RunError, match=f"port {port} on 127.0.0.1"):
            bind("127.0.0.1", port)
    assert require_port(port, "the engine") == port


def test_port_0_takes_any() -> None:
    with bind("127.0.0.1", 0) as a, bind("127.0.0.1", 0) as b:
        assert a.getsockname()[1] != b.getsockname()[1]


def test_port_0_takes_none_that_a_client_may_be_given() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(20):
        with bind("127.0.0.1", 0) as sock:
            assert sock.getsockname()[1] < lowest
