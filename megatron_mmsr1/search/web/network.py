"""Names to addresses and addresses to connections: the two things a guarded fetch asks of the outside.

Both stand in one object so that a test can put a world of its own behind it.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpcore

from megatron_mmsr1.search.upstream.deadline import remaining
from megatron_mmsr1.search.web.urls import FetchFailed, Reason, Refused
from megatron_mmsr1.trajectory import ToolStatus

LOOKUPS = 64  # at once; a look-up blocks its thread for as long as the resolver pleases, so other work shares none of them
TRIES = 4  # addresses of a host that are tried, one after the other


class Network:
    """The real one: the system's resolver and TCP."""

    async def resolve(self, host: str, port: int) -> list[str]:
        """Every address of a host, best first. Raises FetchFailed if there is none."""
        loop = asyncio.get_running_loop()
        look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await loop.run_in_executor(_lookups(), look_up)
        except (OSError, UnicodeError) as e:
            again = isinstance(e, socket.gaierror) and e.errno == socket.EAI_AGAIN
            why = f"the host {host[:80]} has no address ({getattr(e, 'strerror', None) or e})"
            raise FetchFailed(ToolStatus.UPSTREAM_ERROR, why, retry=0.0 if again else None) from None
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))

    async def connect(self, address: str, port: int, timeout: float) -> httpcore.AsyncNetworkStream:
        """A TCP connection to an address, which is never a name. Raises httpcore's ConnectError and ConnectTimeout."""
        # httpcore declares it as the stand-in that is there without anyio.
        backend = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())
        return await backend.connect_tcp(address, port, timeout=timeout)

    @functools.cached_property
    def tls(self) -> ssl.SSLContext:
        return httpcore.default_ssl_context()


@functools.cache
def _lookups() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LOOKUPS, "resolve")


class Pinned(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever name httpcore gives it, and stops reading after `max_bytes`."""

    def __init__(self, network: Network, addresses: Sequence[str], max_bytes: int):
        self._network, self._addresses, self._max_bytes = network, addresses[:TRIES], max_bytes

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        for left in range(len(self._addresses), 0, -1):
            try:
                # A share of the time each, so that one address that answers nothing does not take it all.
                stream = await self._network.connect(self._addresses[-left], port, remaining() / left)
                return _Counted(stream, self._max_bytes)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        raise FetchFailed(ToolStatus.UPSTREAM_ERROR, f"no connection to {host[:80]}", retry=0.0)


class _Counted(httpcore.AsyncNetworkStream):
    """Bytes off the wire up to a cap: headers, chunk lines and interim answers without end pass every cap on the body."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, left: int):
        self._stream, self._left = stream, left

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        self._left -= len(data)
        if self._left < 0:
            raise Refused(Reason.SIZE, "the answer is past the size limit")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Counted(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._left)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
