"""Before a run's first process: its questions are read, their pictures decoded, their prompts tokenised.

Threads share the work: decoders and tokenizers let go of the interpreter. `data.check` says how many rows are read; on a large
set that was checked before, `sample` or `none` saves the minutes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.rows import BadRow
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.progress import progress, say

if TYPE_CHECKING:
    from megatron_mmsr1.data.dataset import Prompt

MANY_ROWS = 500  # from here on, the person is shown what is being waited for
SAMPLE = 1_000  # rows that data.check=sample reads, evenly spread
CHUNK = 64  # rows that a thread reads at a time: neighbours lie in the same row group of the file

Length = Callable[["Prompt"], int]


@dataclass(slots=True)
class Found:
    """What reading some rows gave. `too_long`: (row, tokens of its first prompt) above the limit; `longest`: of all."""

    rows: int = 0
    bad: list[tuple[int, BadRow]] = field(default_factory=list)
    too_long: list[tuple[int, int]] = field(default_factory=list)
    longest: int = 0

    def add(self, other: Found) -> None:
        self.rows += other.rows
        self.bad = sorted([*self.bad, *other.bad], key=lambda b: b[0])
        self.too_long = sorted([*self.too_long, *other.too_long])
        self.longest = max(self.longest, other.longest)


def check_rows(cfg: RunConfig, paths: Sequence[str], key: str, length: Length | None) -> None:
    """Read the rows that `data.check` asks for; `length` gives the tokens of a row's first prompt (None: not looked at).

    UsageError for the first row that cannot be read, unless `data.bad_rows` is skip (they are counted aloud); for a set in
    which no row is usable, or no prompt short enough: such a run would sample nothing and train on nothing.
    """
    from megatron_mmsr1.data.dataset import PromptDataset

    total = len(PromptDataset(paths))
    if paths and not total:
        raise UsageError(f"{key}: not one usable row in {', '.join(paths)}")
    chosen = chosen_rows(total, cfg.data.check)
    if not chosen:
        return
    limit = cfg.protocol.max_prompt_tokens
    found = _read_all(paths, chosen, key, length, limit, stop_at_bad=cfg.data.bad_rows == "error")
    if found.bad and cfg.data.bad_rows == "error":
        raise UsageError(f"{key}: {found.bad[0][1]}; mend the row, or leave such rows out with data.bad_rows=skip")
    good = found.rows - len(found.bad)
    if not good:
        raise UsageError(f"{key}: not one usable row in {', '.join(paths)}; the first: {found.bad[0][1]}")
    if found.bad:
        say(f"{key}: {len(found.bad)} of {found.rows} rows are left out, the first: {found.bad[0][1]}")
    if found.too_long:
        row, tokens = found.too_long[0]
        what = (
            f"{key}: {len(found.too_long)} of {good} first prompts are longer than protocol.max_prompt_tokens={limit} (row "
            f"{row} has {tokens} tokens, the longest {found.longest})"
        )
        if len(found.too_long) == good:
            raise UsageError(f"{what}: nothing could be sampled; raise it, or lower model.max_pixels")
        say(f"warning: {what}: they are never sampled and score 0; raise it, or leave them out of the data")


def chosen_rows(total: int, check: str) -> list[int]:
    """The rows to read, ascending: all, none, or `SAMPLE` of them spread evenly, the first and the last among them."""
    if check == "none":
        return []
    if check == "all" or total <= SAMPLE:
        return list(range(total))
    return sorted({round(i * (total - 1) / (SAMPLE - 1)) for i in range(SAMPLE)})


def _read_all(
    paths: Sequence[str], chosen: list[int], key: str, length: Length | None, limit: int, *, stop_at_bad: bool
) -> Found:
    chunks = [chosen[i : i + CHUNK] for i in range(0, len(chosen), CHUNK)]
    own = threading.local()
    stop = threading.Event()

    def read(rows: list[int]) -> Found:
        from megatron_mmsr1.data.dataset import PromptDataset

        if stop.is_set():
            return Found()
        if not hasattr(own, "data"):
            own.data = PromptDataset(paths)  # its cache of row groups is not for several threads
        return _read(own.data.__getitem__, rows, length, limit)

    found = Found()
    with ThreadPoolExecutor(min(len(chunks), os.cpu_count() or 1)) as pool, _shown(progress, key, chosen) as step:
        try:
            for done in as_completed([pool.submit(read, rows) for rows in chunks]):
                found.add(done.result())
                step(done.result().rows)
                if found.bad and stop_at_bad:
                    stop.set()
        except BaseException:
            stop.set()
            raise
    return found


def _read(row: Callable[[int], Prompt], rows: Sequence[int], length: Length | None, limit: int) -> Found:
    found = Found(rows=len(rows))
    for i in rows:
        try:
            prompt = row(i)
        except BadRow as e:
            found.bad.append((i, e))
            continue
        tokens = length(prompt) if length else 0
        found.longest = max(found.longest, tokens)
        if tokens > limit:
            found.too_long.append((i, tokens))
    return found


class _shown:
    """Progress with an estimate where there are many rows; silence where there are few."""

    def __init__(self, progress: type, key: str, chosen: list[int]) -> None:
        self._bar = progress(f"checking {key}", len(chosen), every_s=5.0, unit="row") if len(chosen) > MANY_ROWS else None

    def __enter__(self) -> Callable[[int], None]:
        if self._bar is None:
            return lambda _: None
        self._bar.__enter__()
        return self._bar.step

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)


def prompt_length(cfg: RunConfig) -> Length:
    """A function of the tokens that a row's first prompt takes, pictures included. UsageError if the tokenizer is no good."""
    from megatron_mmsr1.data.images import ImageStore
    from megatron_mmsr1.rollout.agent import opening_tokens
    from megatron_mmsr1.rollout.context import Context

    context = Context.open(cfg, None, ImageStore(None))
    return lambda prompt: opening_tokens(context, prompt)
