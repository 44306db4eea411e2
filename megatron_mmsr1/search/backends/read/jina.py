"""Reading pages through Jina's Reader (r.jina.ai), or a Reader of your own: it renders them elsewhere and answers Markdown."""

from __future__ import annotations

from typing import Any, Literal

import httpx

from megatron_mmsr1.config.search import ReadSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.protocol import clean
from megatron_mmsr1.search.backends.interfaces import Page, SearchFailure, version, words
from megatron_mmsr1.search.backends.tools import Tools, endpoint
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.search.upstream.upstream import Ask, Upstream, message
from megatron_mmsr1.search.web.urls import Allowed, Reason, Refused, own_name, parse, refusal
from megatron_mmsr1.trajectory import ToolStatus

URL = "https://r.jina.ai"
# What the Reader says of the page and not of itself: it may not read it, found none there, could not make sense of it.
OF_THE_PAGE = (400, 404, 410, 413, 415, 422, 451)


class Options(Section):
    """`format`: the Reader's X-Respond-With / X-Return-Format; text has no links. `no_cache`: a fresh copy of every page."""

    format: Literal["markdown", "text"] = "text"
    no_cache: bool = False


def make(section: ReadSection, tools: Tools) -> Jina:
    key = tools.optional_key(section, "JINA_API_KEY")
    options = tools.options(section, Options, "search.read")
    upstream = tools.upstream("jina", section, *([key] if key else []))
    url = endpoint(section, "search.read", URL)
    return Jina(options, url, key, upstream, section.max_chars, Allowed(tools.cfg.fetch.allow))


class Jina:
    """GET /URL. The page's text is cleaned and cut at `max_chars`; `Page.url` is the one asked for, wherever it led.

    `read` raises SearchFailure: refused, before anything is sent, for what is no http(s) URL, has a password in it, or names a
    private host that `search.fetch.allow` does not; empty for a page that the Reader could not get, may not read, or found to
    be an error page, none of which is worth a retry or says anything of the next page; the rest as every upstream.
    """

    name = "jina"
    local = False

    def __init__(self, options: Options, url: str, key: Secret | None, upstream: Upstream, max_chars: int, allowed: Allowed):
        self._url, self._key, self._upstream = url, key, upstream
        self._max_chars, self._allowed = max_chars, allowed
        self._headers = {"accept": "application/json", "x-return-format": options.format}
        if options.no_cache:
            self._headers["x-no-cache"] = "true"
        self.version = version(1, format=options.format, no_cache=options.no_cache, max_chars=max_chars)

    async def read(self, url: str) -> Page:
        ask = Ask("GET", f"{self._url}/{self._checked(url)}", headers=self._headers, bearer=self._key)
        return await self._upstream.call(ask, lambda said: self._page(url, said), explain)

    async def close(self) -> None:
        await self._upstream.close()

    def _checked(self, url: str) -> str:
        """The URL as it is sent. A Reader of one's own stands in one's own network, so it is guarded as our own fetches are;
        the names behind it are the Reader's to resolve."""
        target = parse(url)
        if target not in self._allowed:
            if own_name(target.host):
                raise Refused(Reason.HOST, f"{target.host} is a name of this network, not of the public internet")
            if target.address is not None and (why := refusal(target.address)):
                raise Refused(Reason.ADDRESS, why)
        # Dots are resolved within the page's own path: in the joined URL they would reach past it.
        return str(httpx.URL(target.url))

    def _page(self, url: str, said: Any) -> Page:
        data = said["data"]
        if "returned error" in words(data.get("warning")):
            raise SearchFailure(ToolStatus.EMPTY, f"jina: {data['warning']}", billed=True)
        if not isinstance(data["content"], str):
            raise TypeError("data.content is no text")
        return Page(url, clean(words(data.get("title"))), clean(data["content"])[: self._max_chars])


def explain(code: int, said: Any) -> SearchFailure | None:
    if code in OF_THE_PAGE:
        return SearchFailure(ToolStatus.EMPTY, f"jina could not read the page (HTTP {code}): {message(said)}")
    return None
