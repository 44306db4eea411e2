"""SGLang: started from its own arguments, spoken to through its own HTTP interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_mmsr1.rollout.engines import base
from megatron_mmsr1.rollout.engines.sglang.settings import SGLangSettings


class SGLang:
    """See `base.Engine`. Imports nothing of SGLang in this process."""

    Settings = SGLangSettings

    def launch(
        self,
        model: Path,
        settings: SGLangSettings,
        log: Path,
        *,
        seed: int = 0,
        version: int = 0,
        trains_pictures: bool = False,
        port: int | None = None,
        follow: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> base.Running:
        from megatron_mmsr1.rollout.engines.sglang.server import launch

        return launch(
            model,
            settings,
            log,
            seed=seed,
            version=version,
            trains_pictures=trains_pictures,
            port=port,
            follow=follow,
            progress=progress,
        )

    def client(self, urls: Sequence[str], **options: Any) -> base.Client:
        from megatron_mmsr1.rollout.engine import EngineClient
        from megatron_mmsr1.rollout.engines.sglang.wire import SGLangWire

        return EngineClient(urls, SGLangWire(), **options)

    def control(self, url: str, *, timeout_s: float = 600.0) -> base.Control:
        from megatron_mmsr1.rollout.engines.sglang.control import SGLangControl

        return SGLangControl(url, timeout_s=timeout_s)


ENGINE: base.Engine = SGLang()

__all__ = ["ENGINE", "SGLang", "SGLangSettings"]
