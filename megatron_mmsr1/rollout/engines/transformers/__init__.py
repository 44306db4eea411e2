"""The transformers engine: a small process around `generate`. For tests and for reading: it samples one turn at a time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from megatron_mmsr1.config import EngineConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.procs.http import answers
from megatron_mmsr1.procs.liveness import pace
from megatron_mmsr1.procs.service import Command
from megatron_mmsr1.rollout.engines import base


class TransformersSettings(EngineConfig):
    name: str = "transformers"
    device: str = Field(default="cpu", description="a device of torch's, e.g. cuda:0")
    threads: int | None = Field(default=None, gt=0, description="CPU threads; default: half the cores")


class TransformersEngine:
    """See `base.Engine`."""

    Settings = TransformersSettings

    def command(self, launch: base.Launch) -> Command:
        """As `base.Engine` has it. `seed` and `trains_pictures` change nothing: turns have seeds, and nothing is cached."""
        settings: TransformersSettings = launch.settings
        if not (launch.model / "config.json").is_file():
            raise UsageError(f"{launch.model}: no Hugging Face checkpoint there (config.json is missing)")
        follow = launch.follow and str(launch.follow)
        spec = {"model": str(launch.model.resolve()), "version": launch.version, "device": settings.device, "follow": follow}
        threads = settings.threads or max(1, (os.cpu_count() or 1) // 2)
        every_s, answer_s = pace(settings.hung_after_s)
        return Command(
            name="the engine",
            argv=[sys.executable, "-m", "megatron_mmsr1.rollout.engines.transformers.server", json.dumps(spec)],
            log=launch.log,
            env={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads), **launch.devices},
            listen=(launch.machine.address, 0),
            machine=launch.machine,
            ready=lambda url: answers(f"{url}/health", timeout_s=5.0),
            ready_within_s=settings.startup_timeout_s,
            ready_setting="engine.startup_timeout_s",
            alive=lambda url: answers(f"{url}/health", timeout_s=answer_s),
            alive_every_s=every_s,
            hung_after_s=settings.hung_after_s,
            grace_s=1.0,
        )

    def client(self, urls: Sequence[str], **options: Any) -> base.Client:
        from megatron_mmsr1.rollout.engine import EngineClient
        from megatron_mmsr1.rollout.engines.transformers.wire import TransformersWire

        return EngineClient(urls, TransformersWire(), **options)

    def control(self, url: str, *, timeout_s: float = 600.0) -> base.Control:
        from megatron_mmsr1.rollout.engines.transformers.control import TransformersControl

        return TransformersControl(url, timeout_s=timeout_s)


ENGINE: base.Engine = TransformersEngine()
