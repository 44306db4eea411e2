"""A world for the guarded fetcher: names that lead where a test wants, and one raw server on loopback that plays every host."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import httpcore

from megatron_mmsr1.search.fetch import Network

PUBLIC = "93.184.215.14"
# Takes the request's first line and where to write.
Respond = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class Canary:
    """A server on loopback that answers whatever it is told and keeps the requests that reached it."""

    def __init__(self, respond: Respond):
        self._respond = respond
        self.connections = 0
        self.requests: list[bytes] = []
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            await self._respond(head.split(b"\r\n")[0].decode(), writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the fetcher left, as it may, or the test is over
        finally:
            writer.close()


@asynccontextmanager
async def canary(respond: Respond | bytes = b"", tls: object = None, host: str = "127.0.0.1") -> AsyncIterator[Canary]:
    """`respond` is told the request line; bytes are sent as they are."""
    if isinstance(respond, bytes):
        data = respond

        async def send(_: str, writer: asyncio.StreamWriter) -> None:
            writer.write(data)

        respond = send
    bird = Canary(respond)
    server = await asyncio.start_server(bird.handle, host, 0, ssl=tls)  # type: ignore[arg-type]
    bird.port = server.sockets[0].getsockname()[1]
    try:
        yield bird
    finally:
        server.close()


class World(Network):
    """`names`: the answers of each host's look-ups, in order, the last one for ever. Every connection ends at `bird`."""

    def __init__(self, bird: Canary, names: Mapping[str, Sequence[Sequence[str]]] | None = None):
        self._bird = bird
        self._names = {"site.test": [[PUBLIC]], "other.test": [["8.8.4.4"]], **(names or {})}
        self.looked_up: list[str] = []
        self.connected: list[tuple[str, int]] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        if host not in self._names:
            return await super().resolve(host, port)
        answers = self._names[host]
        self.looked_up.append(host)
        return list(answers[min(self.looked_up.count(host), len(answers)) - 1])

    async def connect(self, address: str, port: int, timeout: float) -> httpcore.AsyncNetworkStream:
        self.connected.append((address, port))
        return await super().connect("127.0.0.1", self._bird.port, timeout)


def http(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    """A response; `content_type="text/html"` and so on give the headers."""
    given = {k.replace("_", "-"): v for k, v in headers.items()}
    given.setdefault("content-type", "text/html")
    given.setdefault("content-length", str(len(body)))
    head = "".join(f"{k}: {v}\r\n" for k, v in given.items() if v)
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return http(b"", status, location=location)


def zeros(n: int) -> bytes:
    """`n` zero bytes as raw deflate: a megabyte is compressed once and repeated."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return block * (n >> 20) + compressor.compress(bytes(n % 2**20)) + compressor.flush()


def gzip_bomb(megabytes: int) -> bytes:
    """A gzip stream of so many megabytes of zeros, a kilobyte each, without its end."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros(megabytes << 20)


def zlib_bomb(n: int) -> bytes:
    """A whole zlib stream of `n` zero bytes. Their Adler-32 is 1 in its lower half and the count modulo 65521 in its upper."""
    return b"\x78\xda" + zeros(n) + struct.pack(">HH", n % 65521, 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, pixels: bytes | None = None) -> bytes:
    """An RGBA PNG of zeros, honest about its size unless `pixels` says otherwise, with `extra` chunks before its data."""
    if pixels is None:
        pixels = zlib_bomb((1 + 4 * width) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
