"""The weight transport seam: how the trainer's weights reach the engines. `base.py` holds the interface.

A part is `sync/transports/NAME.py` with a `TRANSPORT`, an entry point of the group `megatron_mmsr1.transport`, or a person's
own `package.module:Object`; `train.sync` names it.
"""

from __future__ import annotations

from megatron_mmsr1.plugins.registry import Registry, requires
from megatron_mmsr1.sync.transports.base import TransportPart

REGISTRY: Registry[TransportPart] = Registry(
    "transport", "megatron_mmsr1.sync.transports", "TRANSPORT", key="train.sync", check=requires(methods=("open",))
)
get = REGISTRY.get
