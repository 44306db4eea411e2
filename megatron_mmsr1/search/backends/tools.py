"""What a backend's `make(section, tools)` may use: the way to its upstream, its key, the corpus, the guarded fetcher."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.config.search import BackendSection
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.corpus import Corpus
from megatron_mmsr1.search.server.metrics import Metrics
from megatron_mmsr1.search.upstream.ledger import Ledger
from megatron_mmsr1.search.upstream.secrets import Keys, Secret
from megatron_mmsr1.search.upstream.upstream import Upstream

if TYPE_CHECKING:
    from megatron_mmsr1.search.backends.uploaders.signed_route import PublicFiles


from urllib.parse import urlsplit


class Tools:
    """One a server. `public`: pictures that this server shows to others for a while (the signed_route uploader's)."""

    def __init__(self, cfg: SearchConfig, metrics: Metrics, ledger: Ledger, public: PublicFiles | None = None):
        self.cfg = cfg
        self.public = public
        self._metrics, self._ledger = metrics, ledger
        self._keys = Keys(cfg.keys)

    def upstream(self, name: str, section: BackendSection, *secrets: Secret) -> Upstream:
        """`name` is what metrics, ledger and errors call it."""
        return Upstream(name, section, self._ledger, self._metrics.upstreams.of(name), secrets)

    def key(self, section: BackendSection, default: str) -> Secret:
        """The backend's API key, by the name that its section gives, else by `default`. UsageError says what to set."""
        return self._keys.require(section.key or default, f"the {section.backend} backend")

    def optional_key(self, section: BackendSection, default: str) -> Secret | None:
        """As `key`, for a backend that also works without one. A name that the section gives must be there."""
        return self.key(section, default) if section.key else self._keys.get(default)

    def named_key(self, name: str, who: str) -> Secret:
        """Any other secret, e.g. an uploader's."""
        return self._keys.require(name, who)

    def options[M: BaseModel](self, section: BackendSection, model: type[M], where: str) -> M:
        """`section.options` as the backend's own pydantic model (which forbids unknown keys); UsageError names the key."""
        return typed(section.options, model, f"{where}.options")

    @functools.lru_cache(maxsize=1)  # noqa: B019 (lives as long as the server)
    def corpus(self) -> Corpus:
        """The local corpus, loaded once. UsageError if the config names none."""
        if self.cfg.corpus is None:
            raise UsageError("search.corpus is not set: name the directory that holds corpus.jsonl")
        return Corpus.load(self.cfg.corpus)

    @property
    def directory(self) -> Path | None:
        return None if self.cfg.corpus is None else Path(self.cfg.corpus)


def check(cfg: SearchConfig) -> None:
    """What can be known to be wrong with a `search` section without loading an index: its keys' file, a cap without a price.
    Raises UsageError that names the setting."""
    Keys(cfg.keys)
    capped = [n for n in ("run_usd", "step_usd", "day_usd") if getattr(cfg.budget, n) is not None]
    sections = (cfg.text, cfg.image, cfg.read, cfg.summarise)
    if capped and not any(s.usd_per_1000 is not None for s in sections):
        raise UsageError(
            f"search.budget.{capped[0]} is a cap in dollars, and no backend has a price: set usd_per_1000 and price_as_of of "
            "those that are billed (0 for free ones), or cap the calls"
        )


def typed[M: BaseModel](options: dict[str, Any], model: type[M], where: str) -> M:
    """Options checked by a model. UsageError names the key that is wrong and those that there are."""
    try:
        return model.model_validate(options)
    except ValidationError as e:
        err = e.errors(include_input=False)[0]
        key = ".".join(str(p) for p in err["loc"])
        known = ", ".join(model.model_fields) or "none"
        raise UsageError(f"{where}.{key}: {err['msg']} (keys here: {known})") from None


# Where a backend is asked: the base URL of its section, or the vendor's.


def endpoint(section: BackendSection, setting: str, default: str | None = None, like: str = "http://host:8080") -> str:
    """The base URL without a slash at its end. `setting`: the section's name in the config, e.g. search.text.

    Raises UsageError where there is none, or one that is no http(s) URL. What stands in it is not repeated, for a user name and
    a password may; it may have no query, which a request's own would replace.
    """
    url = section.url or default
    if url is None:
        raise UsageError(f"{setting}.url is not set: {section.backend} has no public server; name yours, e.g. {like}")
    try:
        parts = urlsplit(url)
        fits = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query + parts.fragment
        )
    except ValueError:  # a port that is no number, brackets that do not close
        fits = False
    if not fits:
        raise UsageError(f"{setting}.url is not a base URL: write it as {like}, without ? and #")
    return url.rstrip("/")
