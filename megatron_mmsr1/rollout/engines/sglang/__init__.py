"""SGLang: started from its own arguments, spoken to through its own HTTP interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_mmsr1.procs.service import Command
from megatron_mmsr1.rollout.engines import base
from megatron_mmsr1.rollout.engines.sglang.settings import SGLangSettings


class SGLang:
    """See `base.Engine`. Imports nothing of SGLang in this process."""

    Settings = SGLangSettings

    def command(self, launch: base.Launch) -> Command:
        from megatron_mmsr1.rollout.engines.sglang.server import command

        return command(launch)

    def client(self, urls: Sequence[str], **options: Any) -> base.Client:
        from megatron_mmsr1.rollout.engine import EngineClient
        from megatron_mmsr1.rollout.engines.sglang.wire import SGLangWire

        return EngineClient(urls, SGLangWire(), **options)

    def control(self, url: str, *, timeout_s: float = 600.0) -> base.Control:
        from megatron_mmsr1.rollout.engines.sglang.control import SGLangControl

        return SGLangControl(url, timeout_s=timeout_s)


ENGINE: base.Engine = SGLang()

__all__ = ["ENGINE", "SGLang", "SGLangSettings"]
