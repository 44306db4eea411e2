"""What a page comes as: compressed bytes, taken apart within a cap, then its characters."""

from __future__ import annotations

import codecs
import re
import zlib

from megatron_mmsr1.search.web.urls import FetchFailed, Reason, Refused
from megatron_mmsr1.trajectory import ToolStatus

# Compressed bodies, taken apart piece by piece and never further than a cap: a thousandfold bomb costs what the cap costs.
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


# Bytes of a page to text. What a page says of its own encoding is often wrong; what its bytes say seldom is.
_META = re.compile(rb"""<meta[^>]{0,400}?charset\s{0,8}=\s{0,8}["']?\s{0,8}([\w.:-]{1,40})""", re.IGNORECASE)
_XML = re.compile(rb"""^\s{0,8}<\?xml[^>]{0,200}?encoding\s{0,8}=\s{0,8}["']([\w.:-]{1,40})""", re.IGNORECASE)
_META_BYTES = 4_096  # as far as a declaration in the page is looked for
_LABEL = re.compile(r"[A-Za-z0-9][\w.:-]{0,39}", re.ASCII)
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Names that browsers read as a larger set than they name.
_WIDER = {
    **dict.fromkeys(("ascii", "iso8859-1"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **{"iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874", "shift_jis": "cp932", "euc_kr": "cp949"},
    "big5": "big5hkscs",
}
# Python has other codecs, which are no charsets, or whose decoders are slow on hostile input.
_TEXT = {
    *("utf-8", "utf-16", "utf-16-le", "utf-16-be", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "ptcp154", "cp866"),
    *("gb18030", "big5hkscs", "cp932", "euc_jp", "iso2022_jp", "cp949", "cp874"),
    *(f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
    *(f"cp125{n}" for n in range(9)),
}
_BAD_SHARE = 0.1  # of the non-ASCII characters; a page in another encoding has far more, one with stray bytes fewer


def decode_text(body: bytes, declared: str | None = None) -> str:
    """A page's characters, always; bytes that no encoding explains become U+FFFD.

    A byte order mark decides. Else text that is valid UTF-8 is UTF-8, whatever it is called; else what the HTTP header says
    (`declared`), then what the page says, unless the bytes contradict; at last windows-1252.
    """
    for bom, name in _BOMS:
        if body.startswith(bom):
            return body[len(bom) :].decode(name, "replace")
    header, inner = known(declared), known(_inner(body[:_META_BYTES]))
    if header in ("utf-16", "utf-16-le", "utf-16-be", "iso2022_jp"):  # their bytes may look like ASCII
        return body.decode(header, "replace")
    if inner == "iso2022_jp":
        return body.decode(inner, "replace")
    try:
        return body.decode()
    except UnicodeDecodeError:
        pass
    for name in dict.fromkeys((header, inner, "utf-8")):
        if name is not None and not name.startswith("utf-16"):
            text = body.decode(name, "replace")
            foreign = len(text) - len(text.encode("ascii", "ignore"))
            if text.count("\ufffd") <= _BAD_SHARE * foreign:
                return text
    return body.decode("cp1252", "replace")


def known(label: str | None) -> str | None:
    """Python's name of a charset's label; None for one that is not read."""
    if label is None or not _LABEL.fullmatch(label.strip()):
        return None
    try:
        name = codecs.lookup(label.strip()).name
    except LookupError:
        return None
    name = _WIDER.get(name, name)
    return name if name in _TEXT else None


def _inner(head: bytes) -> str | None:
    found = _XML.search(head) or _META.search(head)
    return found[1].decode("ascii", "ignore") if found else None
