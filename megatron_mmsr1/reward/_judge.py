"""How a language model behind an OpenAI-compatible endpoint is asked for a verdict: settings, prompt, cache, log, failures.

A call that gives no verdict raises SearchFailure, whose status says why (`rate_limited`, `timeout`, `upstream_error`, ...); its
trajectory then has no reward, which is not a reward of 0.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field

from megatron_mmsr1.config.placement import JUDGE_URL
from megatron_mmsr1.config.section import Logging, Machine, Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import clean
from megatron_mmsr1.reward._verdicts import Verdicts, in_run
from megatron_mmsr1.reward.base import Reward
from megatron_mmsr1.trajectory import ToolStatus, Trajectory

if TYPE_CHECKING:
    from megatron_mmsr1.search.upstream.upstream import Upstream

PROMPTS = Path(__file__).parent / "prompts"
FIELDS = ("question", "golden_answers", "response", "mark")
_FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")
RESPONSE_CHARS = 4000  # of what is judged


class JudgeSettings(Section):
    """What all judges have."""

    url: str | None = Field(
        default=None,
        description="base URL of an OpenAI-compatible server, e.g. http://host:30000/v1; default: the model that the run "
        "starts (placement.judge)",
    )
    model: str = Field(min_length=1, description="the pinned model id; a reply of another model is a failure")
    key: Machine[str | None] = Field(
        default=None,
        description="NAME of the environment variable that holds the API key; default: OPENAI_API_KEY if it is set",
    )
    prompt: str | None = Field(default=None, description="file with the prompt; default: the one that ships")
    max_tokens: int = Field(default=512, gt=0, description="of a verdict")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="more keys of the request")
    timeout_s: Machine[float] = Field(default=20.0, gt=0, description="one try")
    retries: Machine[int] = Field(
        default=2, ge=0, le=2, description="more tries after a connection error, a 429, a 5xx or a malformed verdict"
    )
    concurrency: Machine[int] = Field(default=32, gt=0, description="calls in flight at once, a process")
    min_success: Machine[float] = Field(
        default=0.95, ge=0, le=1, description="share of a step's trajectories that must get a verdict; the run ends below it"
    )
    cache: Logging[str | None] = Field(
        default=None, description="SQLite file on a local disk that keeps verdicts by content; default: in the run's directory"
    )


class Judging(Reward):
    """A reward that asks a judge. `NAME` names its files; `read` gives the value of a verdict, or raises ValueError."""

    NAME: str
    read: Callable[[str], float]

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._verdicts: Verdicts = in_run(None, self.NAME, settings.cache)
        self._prompt: str | None = None
        self._way: tuple[asyncio.AbstractEventLoop, Upstream] | None = None
        self._alone: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()

    def keep_files_in(self, directory: Path) -> None:
        self._verdicts = in_run(directory, self.NAME, self.settings.cache)

    async def value(self, trajectory: Trajectory, response: str) -> float:
        """What the judge makes of `response`: from the cache where it has seen the same, under the same prompt, model and
        settings; else asked. Raises SearchFailure, and UsageError for a prompt's file or a key that is not there."""
        body = self._body(trajectory, response)
        key = hashlib.sha256(orjson.dumps([self.settings.url, body], option=orjson.OPT_SORT_KEYS)).digest()
        told = {
            "key": key.hex()[:16],
            "model": self.settings.model,
            "prompt_id": trajectory.prompt_id,
            "sample": trajectory.sample_index,
            "golden_answers": trajectory.golden_answers,
            "response": response[:RESPONSE_CHARS],
        }
        async with self._alone.setdefault(key, asyncio.Lock()):  # equal answers of a group are asked for once
            raw = self._verdicts.get(key)
            cached = raw is not None
            if raw is None:
                raw = await self._ask(body, told)
                self._verdicts.put(key, raw)
        value = type(self).read(raw)
        self._verdicts.note({**told, "raw": raw, "value": value, "cached": cached})
        return value

    async def _ask(self, body: dict[str, Any], told: dict[str, Any]) -> str:
        from megatron_mmsr1.search.backends.interfaces import SearchFailure
        from megatron_mmsr1.search.backends.summarise.openai import explain
        from megatron_mmsr1.search.upstream.exchange import Ask

        def read(said: Any) -> str:
            served = said.get("model") or self.settings.model
            if served != self.settings.model:
                why = f"the judge answered as {served}, and the pinned model is {self.settings.model}: name {served} in `model`"
                raise SearchFailure(ToolStatus.UPSTREAM_ERROR, why, billed=True)
            raw = str(said["choices"][0]["message"]["content"] or "")
            try:
                type(self).read(raw)
            except ValueError as e:
                self._verdicts.note({**told, "raw": raw, "malformed": str(e)})
                raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"malformed verdict: {e}", retry=0.0, billed=True) from None
            return raw

        upstream, bearer = self._upstream()
        url = f"{self._url().rstrip('/')}/chat/completions"
        try:
            return await upstream.call(Ask("POST", url, json=body, bearer=bearer), read, explain)
        except SearchFailure as e:
            self._verdicts.note({**told, "failed": str(e)})
            raise

    def _url(self) -> str:
        if url := self.settings.url or os.environ.get(JUDGE_URL):
            return url
        raise UsageError(
            f"reward {self.NAME} has nobody to ask: set its url, or placement.judge.model for a judge that the run starts"
        )

    def _upstream(self) -> tuple[Upstream, Any]:
        """The way to the judge, one an event loop, and its key."""
        from megatron_mmsr1.config.search import BackendSection, BudgetSection
        from megatron_mmsr1.search.backends.tools import endpoint
        from megatron_mmsr1.search.server.metrics import Metrics
        from megatron_mmsr1.search.upstream.ledger import Ledger
        from megatron_mmsr1.search.upstream.secrets import Keys
        from megatron_mmsr1.search.upstream.upstream import Upstream

        s = self.settings
        bearer = Keys().require(s.key, "the judge") if s.key else Keys().get("OPENAI_API_KEY")
        loop = asyncio.get_running_loop()
        if self._way is None or self._way[0] is not loop:
            section = BackendSection(
                backend="openai", url=self._url(), timeout_s=s.timeout_s, retries=s.retries, concurrency=s.concurrency
            )
            endpoint(section, "reward")
            secrets = [bearer] if bearer else []
            made = Upstream("judge", section, Ledger(None, BudgetSection()), Metrics().upstreams.of("judge"), secrets)
            self._way = (loop, made)
        return self._way[1], bearer

    def _body(self, trajectory: Trajectory, response: str) -> dict[str, Any]:
        shown = clean(response[:RESPONSE_CHARS]).strip()
        values = {
            "question": clean(trajectory.question).strip(),
            "golden_answers": "\n".join(clean(g).strip() for g in trajectory.golden_answers),
            "response": shown,
            # What is judged cannot know its own hash, so it cannot write the line that ends it.
            "mark": hashlib.sha256(shown.encode("utf-8", "replace")).hexdigest()[:16],
        }
        # In one pass: braces in what is filled in are text.
        content = _FIELD.sub(lambda found: values[found[1]], self._read_prompt())
        s = self.settings
        return {
            "model": s.model,
            "temperature": 0,
            "max_tokens": s.max_tokens,
            **s.extra_body,
            "messages": [{"role": "user", "content": content}],
        }

    def _read_prompt(self) -> str:
        if self._prompt is None:
            path = Path(self.settings.prompt) if self.settings.prompt else PROMPTS / f"{self.NAME}.txt"
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as e:
                raise UsageError(f"reward.prompt: {path} cannot be read ({e})") from None
            missing = [f"{{{f}}}" for f in FIELDS[:3] if f"{{{f}}}" not in text]
            if missing:
                raise UsageError(f"reward.prompt: {path} has no {', '.join(missing)}: what is filled in there")
            self._prompt = text
        return self._prompt


def last_line(raw: str, what: str) -> str:
    """What stands after `what:` in the last line of a verdict, after any thoughts. Raises ValueError where it is not there."""
    spoken = raw.rpartition("</think>")[2].strip()
    line = spoken.splitlines()[-1].strip().strip("*`_ ") if spoken else ""
    name, colon, said = line.partition(":")
    if not colon or name.strip(" *").upper() != what:
        raise ValueError(f"its last line is {line[:80]!r}, not {what}: ...")
    return said.strip(" *`.").lower()
