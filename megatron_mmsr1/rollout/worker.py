"""The rollout worker: a process beside a data-parallel leader that keeps a whole batch of trajectories in flight.

The leader's process stays free of asyncio and of the tokenizer; the two talk through a pipe. No trajectory waits for another:
each is scored where it ends, and the call returns when the last is done.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from megatron_mmsr1.config import RunConfig
from megatron_mmsr1.data.dataset import Prompt
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.rollout.jobs import Failed, Job, Progress
from megatron_mmsr1.trajectory import Trajectory

STARTUP_S = 300.0
STOP_S = 5.0


class RolloutWorker:
    """Starts the process at once and waits for it at the first `generate`. Not for several threads.

    `image_root`: the image store's directory, which trainer and dumps share.
    """

    def __init__(self, cfg: RunConfig, engine_urls: Sequence[str], search_url: str | None, image_root: str | Path) -> None:
        from megatron_mmsr1.rollout.serve import serve

        # Spawned: a fork would carry along the trainer's threads and process groups.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve,
            args=(theirs, cfg.model_dump_json(), list(engine_urls), search_url, str(image_root)),
            name="rollout worker",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self._ready = False

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        indices: Sequence[int],
        weight_version: int | None,
        group_size: int,
        temperature: float | None = None,
        copies: Sequence[int] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Trajectory]:
        """Roll out `group_size` trajectories of each prompt and score them; blocks. In order: prompts, then samples.

        `indices` are the prompts' places in the dataset, one each: with the run's seed, `step`, sample and turn they seed the
        sampling. `copies`: how often each came before in the whole step, of which other workers roll out other shares; default:
        within `indices`. `weight_version`: what the engines must hold; None takes any. `progress` is called a few times a
        second.

        Raises RunError if an engine holds other weights, if engine and trainer disagree on tokens, or if the worker dies;
        UsageError for a prompt whose picture cannot be read.
        """
        if len(indices) != len(prompts):
            raise ValueError(f"{len(indices)} indices for {len(prompts)} prompts")
        self._wait_ready()
        self._send(
            Job(list(prompts), step, list(indices), weight_version, group_size, temperature, list(copies) if copies else None)
        )
        while True:
            said = self._receive(None)
            if isinstance(said, Progress):
                if progress is not None:
                    progress(said)
            else:
                return said

    def close(self) -> None:
        """End the process; harmless if it has ended."""
        with contextlib.suppress(OSError):
            self._pipe.close()  # it ends when it sees this
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_ready(self) -> None:
        if not self._ready:
            self._receive(time.monotonic() + STARTUP_S)
            self._ready = True

    def _send(self, job: Job) -> None:
        try:
            self._pipe.send(job)
        except OSError:
            raise self._dead() from None

    def _receive(self, deadline: float | None) -> Any:
        """The worker's next word; its failure raised here."""
        while not self._pipe.poll(1.0):
            if deadline is not None and time.monotonic() > deadline:
                raise RunError(f"the rollout worker was not ready within {STARTUP_S:g} s")
            if not self._process.is_alive() and not self._pipe.poll(0):
                raise self._dead()
        try:
            said = self._pipe.recv()
        except (EOFError, OSError):
            raise self._dead() from None
        if isinstance(said, Failed):
            raise (UsageError if said.usage else RunError)(said.message)
        return said

    def _dead(self) -> RunError:
        self._process.join(STOP_S)
        return RunError(
            f"the rollout worker (pid {self._process.pid}) ended with exit code {self._process.exitcode}; its own words are in "
            "this process's stderr. An exit code of -9 usually means that the machine ran out of memory"
        )


__all__ = ["Connection", "Progress", "RolloutWorker"]
