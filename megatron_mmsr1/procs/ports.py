"""TCP ports of this machine: find a free one, check one, bind one."""

from __future__ import annotations

import errno
import random
import socket

from megatron_mmsr1.errors import RunError

HOST = "127.0.0.1"
# Below the range from which the kernel draws client ports (32768 on Linux), so that no connection takes one in between.
PORTS = range(20000, 32000)
TRIES = 200


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket that accepts nothing yet; port 0 takes a free one of `PORTS`. Raises RunError that names the port.

    Bound in a parent and inherited by a child it leaves no moment in which another process could take the port. The kernel is
    not asked for "any port": it would give one of those that it also gives to clients, and a client that tries again and again
    to reach a server that is being restarted there may be given the server's own port and be connected to itself.
    """
    if port:
        try:
            return _bound(host, port)
        except OSError as e:
            why = f"port {port} on {host} cannot be used ({e.strerror})"
            raise RunError(f"{why}: end what listens there, or take port 0 for any free one") from None
    for candidate in _candidates():
        try:
            return _bound(host, candidate)
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                raise RunError(f"no port on {host} can be used ({e.strerror})") from None
    raise _none_free(host)


def _bound(host: str, port: int) -> socket.socket:
    # The protocol is named, for asyncio switches Nagle's algorithm off only on sockets that say that they are TCP's.
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(0)  # Linux lets two sockets with SO_REUSEADDR bind; only one of them may listen
    except OSError:
        sock.close()
        raise
    return sock


def port_is_free(port: int, host: str = HOST) -> bool:
    """Whether it could be bound just now."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = HOST) -> int:
    """A port that could be bound just now. Raises RunError if `TRIES` draws all fail."""
    for port in _candidates():
        if port_is_free(port, host):
            return port
    raise _none_free(host)


def _candidates() -> list[int]:
    return random.Random().sample(PORTS, TRIES)


def _none_free(host: str) -> RunError:
    return RunError(f"no free port between {PORTS.start} and {PORTS.stop} on {host}: stop what holds them (ss -ltnp lists it)")


def require_port(port: int, what: str, host: str = HOST) -> int:
    """`port` if it is free, else RunError naming it: the check before a server that was told its port starts."""
    if not port_is_free(port, host):
        raise RunError(f"port {port} for {what} is taken on {host}: end its holder (ss -ltnp) or name another port")
    return port
