"""Bytes of a page to text. What a page says of its own encoding is often wrong; what its bytes say seldom is."""

from __future__ import annotations

import codecs
import re

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
