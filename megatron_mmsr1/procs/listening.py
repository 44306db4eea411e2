"""A uvicorn server for whoever waits for it: the search server and the gateway."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn


class ListeningServer(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, settings: uvicorn.Config, listening: Callable[[], object]):
        super().__init__(settings)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()
