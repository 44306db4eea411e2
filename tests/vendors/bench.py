"""One backend on the bench: made as the search server makes it, with its metrics and its ledger at hand."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

from ledger_sums import run_total

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.backends.tools import Tools
from megatron_mmsr1.search.server.compose import make
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger
from vendors.spec import KEY, Spec

KEY_FORMS = (KEY, quote(KEY, safe=""), quote_plus(KEY), KEY.partition("/")[2])
QUERY, PAGE_URL, PAGE_TEXT = "river of zurimo?", "https://towns.test/zurimo", "Zurimo is a town. Its river is nofevo."


class Bench:
    """`section`: settings of the backend's section; `cfg`: of the whole. The key must be in the environment."""

    def __init__(self, spec: Spec, url: str, section: Mapping[str, Any] | None = None, cfg: Mapping[str, Any] | None = None):
        settings = {"backend": spec.backend, "url": url, "options": dict(spec.options), **(section or {})}
        self.spec = spec
        self.cfg = SearchConfig.model_validate({**(cfg or {}), spec.kind: settings})
        self.metrics = Metrics()
        self.ledger = Ledger(None, self.cfg.budget)
        self.backend = make(spec.kind, getattr(self.cfg, spec.kind), Tools(self.cfg, self.metrics, self.ledger))

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        await self.backend.close()  # the ledger stays open, to be looked at

    async def ask(self) -> Any:
        if self.spec.kind == "text":
            return list(await self.backend.search(QUERY, 5))
        if self.spec.kind == "read":
            return await self.backend.read(PAGE_URL)
        return await self.backend.summarise(QUERY, PAGE_TEXT)

    async def outcome(self) -> Any:
        """What it gives, or the SearchFailure that it raises."""
        try:
            return await self.ask()
        except SearchFailure as e:
            return e

    @property
    def billed(self) -> int:
        return run_total(self.ledger, "")[0]

    @property
    def retries(self) -> float:
        return self.metrics.upstreams.of(self.spec.backend).plain()["retries"]

    def shown(self, outcome: Any, log: str) -> str:
        """Everything that a person, a log, a trace or a metric may come to see of a call."""
        seen: list[object] = [log, self.metrics.render().decode(), self.backend.version, self.cfg, self.ledger.spent(), outcome]
        holders = [self.backend, *vars(self.backend).values()]
        seen += [h for holder in holders for h in (holder, getattr(holder, "__dict__", None))]
        while isinstance(outcome, BaseException):
            seen += [str(outcome), outcome.args, vars(outcome), *traceback.format_exception(outcome)]
            outcome = outcome.__cause__ or outcome.__context__
        return "\n".join(s if isinstance(s, str) else repr(s) for s in seen)


def leaked(shown: str) -> list[str]:
    """The forms of the key that stand in it."""
    return [form for form in KEY_FORMS if form in shown]
