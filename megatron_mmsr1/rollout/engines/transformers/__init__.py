"""The transformers engine: a small process around `generate`. For tests and for reading: it samples one turn at a time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_mmsr1.config import EngineConfig
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.rollout.engines import base


class TransformersSettings(EngineConfig):
    name: str = "transformers"
    device: str = Field(default="cpu", description="a device of torch's, e.g. cuda:0")
    threads: int | None = Field(default=None, gt=0, description="CPU threads; default: half the cores")


class TransformersEngine:
    """See `base.Engine`."""

    Settings = TransformersSettings

    def launch(
        self,
        model: Path,
        settings: TransformersSettings,
        log: Path,
        *,
        seed: int = 0,
        version: int = 0,
        trains_pictures: bool = False,
        port: int | None = None,
        follow: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> base.Running:
        """As `base.Engine` has it. `seed` and `trains_pictures` change nothing: turns have seeds, and nothing is cached."""
        from megatron_mmsr1.procs.http import answers
        from megatron_mmsr1.procs.ports import HOST
        from megatron_mmsr1.procs.service import Command, Service

        if not (model / "config.json").is_file():
            raise UsageError(f"{model}: no Hugging Face checkpoint there (config.json is missing)")
        spec = {"model": str(model), "version": version, "device": settings.device, "follow": follow and str(follow)}
        threads = settings.threads or max(1, (os.cpu_count() or 1) // 2)
        command = Command(
            name="the engine",
            argv=[sys.executable, "-m", "megatron_mmsr1.rollout.engines.transformers.server", json.dumps(spec)],
            log=log,
            env={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)},
            listen=(HOST, port or 0),
            ready=lambda url: answers(f"{url}/health", timeout_s=5.0),
            ready_within_s=settings.startup_timeout_s,
            ready_setting="engine.startup_timeout_s",
            alive=lambda url: answers(f"{url}/health", timeout_s=10.0),
            hung_after_s=settings.hung_after_s,
            grace_s=1.0,
        )
        return Service(command).start(progress)

    def client(self, urls: Sequence[str], **options: Any) -> base.Client:
        from megatron_mmsr1.rollout.engine import EngineClient
        from megatron_mmsr1.rollout.engines.transformers.wire import TransformersWire

        return EngineClient(urls, TransformersWire(), **options)

    def control(self, url: str, *, timeout_s: float = 600.0) -> base.Control:
        from megatron_mmsr1.rollout.engines.transformers.control import TransformersControl

        return TransformersControl(url, timeout_s=timeout_s)


ENGINE: base.Engine = TransformersEngine()
