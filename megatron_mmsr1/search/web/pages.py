"""A page's HTML to clean text: what a reader sees, and nothing that was put there for a model only."""

# lxml has no types.
# pyright: standard

from __future__ import annotations

import asyncio
import os
import re
import resource
import struct
import sys
from typing import BinaryIO

import lxml.etree
import lxml.html
import orjson

from megatron_mmsr1.procs.kill import kill
from megatron_mmsr1.protocol import clean
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.trajectory import ToolStatus

# trafilatura's heuristics tell an article from the furniture around it by length; below this they lose real text.
ARTICLE_CHARS = 1_500
# It also takes about 70 microseconds and 7 KB an element; a page of more than this is taken as a whole.
ARTICLE_ELEMENTS = 40_000
TITLE_CHARS = 300

_UNSEEN_TAGS = {
    *("script", "style", "template", "noscript", "iframe", "object", "embed", "svg", "math", "canvas", "head"),
    *("nav", "footer", "form", "button", "select", "textarea", "input", "dialog"),
}
_BLOCK_TAGS = {
    *("p", "div", "section", "article", "main", "aside", "header", "body", "blockquote", "pre", "figure", "figcaption"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd", "table", "tr", "caption", "br", "hr"),
}
_CELL_TAGS = {"td", "th"}
_HIDING = re.compile(
    r"display:none|visibility:(?:hidden|collapse)|opacity:0?\.?0*(?:[;!}]|$)|font-size:0(?!\.?[1-9])|"
    r"text-indent:-\d{3}|(?:left|top|right|bottom|margin-left|margin-top):-\d{3}|"
    r"clip:rect\(0|clip-path:inset\((?:50|100)%|[;{^]?color:transparent|transform:scale\(0\)|"
    r"(?:^|;)(?:max-)?(?:width|height):0(?:px)?(?:;|$)"
)
_CSS_NAME = re.compile(r"[.#][\w-]+")
_SPACE = re.compile(r"\s+")


def page_text(html: str, title: str = "") -> str:
    """The visible text of a page, one block a line; a heading that only repeats `title` is left out.

    Short pages keep every visible block; on long ones trafilatura picks the article. Control tokens, our own tags and
    invisible characters are defused by `protocol.clean`. Returns "" for a page without text.
    """
    tree = _tree(html)
    return "" if tree is None else _text(tree, title)


def html_page(html: str) -> tuple[str, str]:
    """(title, text) of a page from outside: the title is its own (`<title>`, else og:title), "" where it has none."""
    tree = _tree(html)
    if tree is None:
        return "", ""
    title = _title(tree)
    return title, _text(tree, title)


def plain_text(text: str) -> str:
    """A page that is text already, cleaned as `page_text` cleans."""
    lines = (_SPACE.sub(" ", line).strip() for line in text.splitlines())
    return clean("\n".join(line for line in lines if line))


def _tree(html: str) -> lxml.html.HtmlElement | None:
    try:
        return lxml.html.document_fromstring(
            html.encode("utf-8", "replace"),
            parser=lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True),
        )
    except lxml.etree.ParserError:  # nothing in it
        return None


def _text(tree: lxml.html.HtmlElement, title: str) -> str:
    _drop_unseen(tree)
    text = "\n".join(_lines(tree, title))
    if len(text) >= ARTICLE_CHARS and sum(1 for _ in tree.iter()) <= ARTICLE_ELEMENTS:
        import trafilatura

        article = trafilatura.extract(tree, favor_recall=True, include_comments=False, include_tables=True)
        text = article or text
    return clean(text)


def _title(tree: lxml.html.HtmlElement) -> str:
    found = [tree.findtext(".//title"), *tree.xpath("(//meta[@property='og:title'])[1]/@content")]
    titles = (_SPACE.sub(" ", clean(t[: 4 * TITLE_CHARS])).strip()[:TITLE_CHARS] for t in found if t)
    return next((t for t in titles if t), "")


def _drop_unseen(tree: lxml.html.HtmlElement) -> None:
    names = _hidden_names(tree)
    for el in [e for e in tree.iter() if isinstance(e.tag, str) and _unseen(e, names)]:
        parent = el.getparent()
        if parent is None:  # the root, or already gone with its parent
            continue
        if el.tail:
            # An empty element stays to hold the text behind it: moving that to what stands before takes time in the square
            # of the number of such elements.
            el.clear(keep_tail=True)
            el.tag = "span"
        else:
            parent.remove(el)


def _hidden_names(tree: lxml.html.HtmlElement) -> set[str]:
    """The `.class` and `#id` names that a style sheet in the page hides."""
    names: set[str] = set()
    for sheet in tree.iter("style"):
        for block in (sheet.text or "").split("}"):
            selector, _, rule = block.rpartition("{")
            if _HIDING.search(_squeeze(rule)):
                names.update(_CSS_NAME.findall(selector))
    return names


def _unseen(el: lxml.html.HtmlElement, hidden: set[str]) -> bool:
    if el.tag in _UNSEEN_TAGS or el.get("hidden") is not None or el.get("aria-hidden", "").strip().lower() == "true":
        return True
    if hidden and (f"#{el.get('id')}" in hidden or any(f".{c}" in hidden for c in el.get("class", "").split())):
        return True
    style = el.get("style")
    return style is not None and _HIDING.search(_squeeze(style)) is not None


def _squeeze(css: str) -> str:
    """Lower case, without comments and white space. Linear in the length, as everything that reads a hostile page."""
    before, *after = css.split("/*")
    return "".join("".join([before, *(c.partition("*/")[2] for c in after)]).split()).lower()


def _lines(tree: lxml.html.HtmlElement, title: str) -> list[str]:
    pieces: list[str] = []
    for event, el in lxml.etree.iterwalk(tree, events=("start", "end")):
        if el.tag in _BLOCK_TAGS:
            pieces.append("\n")
        elif event == "start" and el.tag in _CELL_TAGS and el.getprevious() is not None:
            pieces.append(": " if el.getprevious().tag == "th" else ", ")
        text = el.text if event == "start" else el.tail
        if text:
            pieces.append(_SPACE.sub(" ", text))
    lines = (_SPACE.sub(" ", line).strip() for line in "".join(pieces).split("\n"))
    skip = title.strip().casefold()
    return [line for line in lines if line and line.casefold() != skip]


_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Za-z]|Dr|Mr|Mrs|Ms|St|Mt|Prof|Jr|Sr|vs|etc|ca|No|e\.g|i\.e|U\.S)\.$")


def sentences(text: str) -> list[str]:
    """The sentences of a page text, in order; a line never runs into the next."""
    out: list[str] = []
    for line in text.split("\n"):
        held = ""
        for part in _SENTENCE_END.split(line):
            held = f"{held} {part}".strip()
            if held and not _ABBREVIATION.search(held[-12:]):
                out.append(held)
                held = ""
        if held:
            out.append(held)
    return out


# Pages to text in processes of their own, which are killed when a page takes too long.
#
# A thread could not be: libxml2 takes the square of the attributes of a tag, which is a quarter of an hour for a page of five
# megabytes, and no cap on bytes that lets honest pages through prevents that. It is also the only way to extract pages on many
# cores.

PAGE_S = 10.0  # honest pages take a tenth of a second, the worst that is not quadratic five
WORKER_BYTES = 4 * 2**30  # of address space; the worst page of five megabytes takes a third of a gigabyte
_LENGTH = struct.Struct("<Q")


class Extractors:
    """Up to `workers` processes, started as they are needed. Belongs to one event loop; `close` it there."""

    def __init__(self, workers: int):
        self._free = asyncio.Semaphore(workers)
        self._idle: list[asyncio.subprocess.Process] = []

    async def page(self, html: str) -> tuple[str, str]:
        """(title, text) by `html_page`. Raises SearchFailure: timeout past PAGE_S, refused where a worker dies of it."""
        async with self._free, within(PAGE_S, "reading the page"):
            worker = self._rested() or await _start()
            try:
                answer = await _ask(worker, html.encode("utf-8", "replace"))
            except (asyncio.IncompleteReadError, ConnectionError):
                await kill(worker)
                raise SearchFailure(ToolStatus.REFUSED, "the page is more than a reader can take") from None
            except BaseException:
                await kill(worker)
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
            await kill(self._idle.pop())


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


def main() -> None:
    """A worker: length and HTML in, length and JSON out, until its input ends, as it does when its server dies."""
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may come between the answers

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
