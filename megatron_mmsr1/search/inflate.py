"""Compressed bodies, taken apart piece by piece and never further than a cap: a thousandfold bomb costs what the cap costs."""

from __future__ import annotations

import zlib

from megatron_mmsr1.search.refused import FetchFailed, Reason, Refused
from megatron_mmsr1.trajectory import ToolStatus

ACCEPTED = "gzip, deflate"  # what is asked for; brotli and zstd have windows that a cap on output does not bound
MAX_MEMBERS = 64  # of a gzip stream; each costs a decompressor, however little it holds


class Inflater:
    """Feed it the body's bytes as they come, then `end` it.

    Raises Refused for an encoding other than gzip, deflate or none, and past `cap` bytes of output; FetchFailed for data that
    is torn.
    """

    def __init__(self, encoding: str, cap: int):
        self._left = cap
        self._encoding = encoding.strip().lower().removeprefix("x-") or "identity"
        if self._encoding not in ("identity", "gzip", "deflate"):
            raise Refused(
                Reason.ENCODING, f"the body is encoded as {encoding[:40]!r}; only one layer of gzip or deflate is read"
            )
        self._members = 0
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16) if self._encoding == "gzip" else None
        self._started = False

    def feed(self, data: bytes) -> bytes:
        if self._encoding == "identity":
            return self._counted(data)
        out = bytearray()
        while data:
            if self._stream is None:  # deflate: RFC 9110 wants a zlib wrapper, some servers send none
                wrapped = data[0] & 0x0F == 8
                self._stream = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
            elif self._stream.eof:
                if self._encoding != "gzip" or data[0] != 0x1F:
                    break  # servers pad
                self._next_member()
            self._started = True
            try:
                # One byte more than there is room for tells a full stream from one that goes on.
                out += self._counted(self._stream.decompress(data, self._left + 1))
            except zlib.error:
                raise FetchFailed(ToolStatus.UPSTREAM_ERROR, f"the body is not valid {self._encoding}") from None
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        return bytes(out)

    def end(self) -> None:
        if self._started and self._stream is not None and not self._stream.eof:
            raise FetchFailed(ToolStatus.UPSTREAM_ERROR, f"the {self._encoding} body ends too early")

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise Refused(Reason.SIZE, "the body is past the size limit")
        return data

    def _next_member(self) -> None:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise Refused(Reason.ENCODING, f"the body has over {MAX_MEMBERS} gzip members")
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
