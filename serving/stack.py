"""What a gateway or an app stands on, in one event loop: the model's context, its engines, its search servers, the answerer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from megatron_mmsr1.data.images import ImageStore
from megatron_mmsr1.models import of_checkpoint
from megatron_mmsr1.protocol import Prompts
from megatron_mmsr1.rollout import engines as kinds
from megatron_mmsr1.rollout.context import Context, load_tokenizer
from megatron_mmsr1.search.client import SearchClient
from serving.answering import Answerer
from serving.settings import ServeConfig

if TYPE_CHECKING:
    import aiohttp

HEALTH_S = 0.9  # what does not answer by then is told as such: `healthy` itself takes no longer than a second
OK = "ok"


class Stack:
    """An async context manager over servers that run already. Belongs to one event loop.

    `search` is the default search server; those of `cfg.searches` join it by their names. Without a default one, a question
    that names none is answered only with `tools=()`. Building it reads the tokenizer: UsageError if there is none.
    """

    def __init__(self, cfg: ServeConfig, *, engines: Sequence[str], search: str | None):
        files = of_checkpoint(cfg.model.path, cfg.model.family)
        context = Context.build(
            load_tokenizer(cfg.model.path),
            prompts=Prompts.load(cfg.protocol.prompts),
            limits=cfg.protocol,
            # A person sees that a search failed, and gets an answer all the same.
            rollout=cfg.rollout.model_copy(update={"tool_failure": "neutral_observation"}),
            model=cfg.model,
            search=None,
            store=ImageStore(None),
            family=files.family,
            pictures=files.pictures,
            tools=cfg.tools,
        )
        self.cfg = cfg
        self._engines = [u.rstrip("/") for u in engines]
        self._servers = ({"": search.rstrip("/")} if search else {}) | {n: u.rstrip("/") for n, u in cfg.searches.items()}
        self.engine: Any = kinds.get(cfg.engine.name).client(
            self._engines,
            timeout_s=cfg.rollout.generate_timeout_s,
            retries=cfg.rollout.retries,
            stop_ids=[context.stop_id],
            hung_after_s=cfg.engine.hung_after_s,
        )
        self.searches = {
            name: SearchClient(url, timeout_s=cfg.rollout.tool_timeout_s, retries=cfg.rollout.retries, run=f"serve/{cfg.name}")
            for name, url in self._servers.items()
        }
        self.answerer = Answerer(
            context, self.engine, self.searches, temperature=cfg.temperature, forced_reason=cfg.forced_reason
        )
        self._http: aiohttp.ClientSession | None = None

    async def healthy(self) -> dict[str, Any]:
        """{"ok": bool, "engines": {URL: state}, "searches": {NAME: state}} within a second; a state is "ok" or what is wrong.

        ok: an engine answers, and so does every search server. SGLang's own /health takes at least a second and samples a
        token; here its front only is asked, which ends with its scheduler.
        """
        engines, searches = await asyncio.gather(
            asyncio.gather(*(self._engine_state(u) for u in self._engines)),
            asyncio.gather(*(self._state(f"{u}/readyz") for u in self._servers.values())),
        )
        return {
            "ok": OK in engines and all(s == OK for s in searches),
            "engines": dict(zip(self._engines, engines, strict=True)),
            "searches": dict(zip(self._servers, searches, strict=True)),
        }

    async def _engine_state(self, url: str) -> str:
        said = await self._state(f"{url}/model_info")
        # SGLang's router has no such page, but one that says whether it has engines.
        return await self._state(f"{url}/readiness") if said == "HTTP 404" else said

    async def _state(self, url: str) -> str:
        import aiohttp

        try:
            async with self._session().get(url) as r:
                return OK if r.status == 200 else f"HTTP {r.status}"
        except TimeoutError:
            return f"no answer within {HEALTH_S:g} s"
        except aiohttp.ClientError as e:
            return f"no connection ({type(e).__name__})"

    def _session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._http is None:
            # A connection of its own each time: one that was kept may be closed at that moment, which says nothing.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._http = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=HEALTH_S), trust_env=False
            )
        return self._http

    async def close(self) -> None:
        """Wait for the engine's pending aborts, then close all connections."""
        await self.engine.close()
        for client in self.searches.values():
            await client.close()
        if self._http is not None:
            await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def open_stack(cfg: ServeConfig, *, engines: Sequence[str], search: str | None) -> Stack:
    """`async with open_stack(...) as stack`: see Stack."""
    return Stack(cfg, engines=engines, search=search)
