"""Free engines through the `ddgs` library, for demos only: it scrapes result pages, which their owners limit and change.

Needs no key. Which engines answer, and so what is found, changes from call to call: no run that is compared should use it.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from megatron_mmsr1.config.search import TextSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.search.backends.interfaces import SearchFailure, TextResult, listed, results, version
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.upstream.upstream import Upstream
from megatron_mmsr1.trajectory import ToolStatus


class Options(Section):
    """The library's own parameters of these names. `region` is LL-CC backwards ("us-en"); null: the section's."""

    region: str | None = None
    safesearch: str = "moderate"
    backend: str = "auto"


def make(section: TextSection, tools: Tools) -> Ddgs:
    import ddgs

    options = tools.options(section, Options, "search.text")
    client = cast(Any, ddgs).DDGS(timeout=math.ceil(section.timeout_s))
    return Ddgs(section, options, client.text, tools.upstream("ddgs", section))


class Ddgs:
    """`ask` is the library's blocking `text`; it runs in threads of this backend's own, as many as it has places."""

    name = "ddgs"
    local = False

    def __init__(self, section: TextSection, options: Options, ask: Callable[..., Any], upstream: Upstream):
        self._ask, self._upstream = ask, upstream
        self._params = {**options.model_dump(), "region": options.region or f"{section.country}-{section.language}"}
        self.version = version(1, **self._params, library=importlib.metadata.version("ddgs"))
        self._threads = ThreadPoolExecutor(section.concurrency, thread_name_prefix="ddgs")

    async def search(self, query: str, k: int) -> Sequence[TextResult]:
        return await self._upstream.run(lambda: self._once(query, k))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._upstream.close()

    async def _once(self, query: str, k: int) -> list[TextResult]:
        from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._threads, lambda: self._ask(query, max_results=k, **self._params))
            return results(listed(rows), k, link="href", title="title", snippet="body")
        except RatelimitException as e:
            raise SearchFailure(ToolStatus.RATE_LIMITED, f"ddgs: {e}", retry=1.0) from None
        except TimeoutException as e:
            raise SearchFailure(ToolStatus.TIMEOUT, f"ddgs: {e}") from None
        except DDGSException as e:
            if "no results" in str(e).lower():
                return []
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"ddgs: {e}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as e:  # a page that is not as its scraper expects
            why = f"ddgs tripped over a page ({type(e).__name__}: {e})"
            raise SearchFailure(ToolStatus.UPSTREAM_ERROR, why) from None
