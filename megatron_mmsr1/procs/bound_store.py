"""torch's rendezvous store on one address instead of all.

A `TCPStore` listens on every interface and asks nobody who they are: whoever reaches its port reads, sets and deletes the keys
by which ranks find each other. Here it listens on the address that it is told to be reached at: loopback for everything that we
start on one machine, the interface of MASTER_ADDR on a cluster (where the network must keep others out).

A replacement of torch's own class in the modules that make stores; tied to the version it was read in.
"""

from __future__ import annotations

import importlib
import socket
from typing import Any

from megatron_mmsr1.procs import patches

# torchrun's agent, init_process_group, and whoever asks torch.distributed (SGLang does).
_MODULES = (
    "torch.distributed",
    "torch.distributed.rendezvous",
    "torch.distributed.elastic.rendezvous.static_tcp_rendezvous",
)
_BACKLOG = 4096


def install() -> None:
    """For this process. Raises RunError for another torch than the one that this fits."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    patches.check("bound-store")
    if TCPStore.__name__ == "BoundStore":
        return

    class BoundStore(TCPStore):
        def __init__(self, host_name: str, port: int, *args: Any, **options: Any) -> None:
            names = ("world_size", "is_master", "timeout", "wait_for_workers", "multi_tenant", "master_listen_fd", "use_libuv")
            options |= dict(zip(names, args, strict=False))
            listening = _bound(host_name, port) if options.get("is_master") and not options.get("master_listen_fd") else None
            if listening is not None:
                port = listening.getsockname()[1]
                options["master_listen_fd"] = listening.detach()
            super().__init__(host_name, port, **options)

    for name in _MODULES:
        setattr(importlib.import_module(name), "TCPStore", BoundStore)  # noqa: B010


def _bound(host: str, port: int) -> socket.socket | None:
    """A listening socket; None where this process serves that port already and torch will share the server."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    s = socket.socket(family, kind, protocol)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        s.bind(address)
        s.listen(_BACKLOG)
    except OSError:
        s.close()
        return None
    return s
