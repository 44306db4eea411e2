"""Pages to text in processes of their own, which are killed when a page takes too long.

A thread could not be: libxml2 takes the square of the attributes of a tag, which is a quarter of an hour for a page of five
megabytes, and no cap on bytes that lets honest pages through prevents that. It is also the only way to extract pages on many
cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import struct
import sys
from typing import BinaryIO

import orjson

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.trajectory import ToolStatus

PAGE_S = 10.0  # honest pages take a tenth of a second, the worst that is not quadratic five
WORKER_BYTES = 4 * 2**30  # of address space; the worst page of five megabytes takes a third of a gigabyte
_LENGTH = struct.Struct("<Q")


class Extractors:
    """Up to `workers` processes, started as they are needed. Belongs to one event loop; `close` it there."""

    def __init__(self, workers: int):
        self._free = asyncio.Semaphore(workers)
        self._idle: list[asyncio.subprocess.Process] = []

    async def page(self, html: str) -> tuple[str, str]:
        """(title, text) by `pages.html_page`. Raises SearchFailure: timeout past PAGE_S, refused where a worker dies of it."""
        async with self._free, within(PAGE_S, "reading the page"):
            worker = self._rested() or await _start()
            try:
                answer = await _ask(worker, html.encode("utf-8", "replace"))
            except (asyncio.IncompleteReadError, ConnectionError):
                await _kill(worker)
                raise SearchFailure(ToolStatus.REFUSED, "the page is more than a reader can take") from None
            except BaseException:
                await _kill(worker)
                raise
            self._idle.append(worker)
        title, text = orjson.loads(answer)
        return title, text

    def _rested(self) -> asyncio.subprocess.Process | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.returncode is None:  # else the system took it while it had nothing to do
                return worker
        return None

    async def close(self) -> None:
        while self._idle:
            await _kill(self._idle.pop())


async def _start() -> asyncio.subprocess.Process:
    # In a session of its own: a terminal's interrupt is for the server, which closes its workers.
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def _ask(worker: asyncio.subprocess.Process, page: bytes) -> bytes:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(_LENGTH.pack(len(page)) + page)
    await worker.stdin.drain()
    (length,) = _LENGTH.unpack(await worker.stdout.readexactly(_LENGTH.size))
    return await worker.stdout.readexactly(length)


async def _kill(worker: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.kill()
    await asyncio.shield(worker.wait())


def main() -> None:
    """A worker: length and HTML in, length and JSON out, until its input ends, as it does when its server dies."""
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may come between the answers
    from megatron_mmsr1.search.server.pages import html_page

    while (page := _read(source)) is not None:
        answer = orjson.dumps(html_page(page.decode()))
        sink.write(_LENGTH.pack(len(answer)) + answer)
        sink.flush()


def _read(source: BinaryIO) -> bytes | None:
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    page = source.read(length)
    return page if len(page) == length else None


if __name__ == "__main__":
    main()
