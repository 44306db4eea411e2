"""The engine seam: what serves the policy's weights and samples turns. `base.py` holds the interface.

A part is `engines/NAME.py` (or a package of that name) with an `ENGINE`, an entry point of the group `megatron_mmsr1.engine`,
or a person's own `package.module:Object`; `engine.name` names it.
"""

from __future__ import annotations

from megatron_mmsr1.plugins.registry import Registry, requires
from megatron_mmsr1.rollout.engines.base import Engine

REGISTRY: Registry[Engine] = Registry(
    "engine",
    "megatron_mmsr1.rollout.engines",
    "ENGINE",
    key="engine.name",
    check=requires(methods=("command", "client", "control")),
)
get = REGISTRY.get
