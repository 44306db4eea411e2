"""The search server as a process: `python -m megatron_mmsr1.search.server.main --config run.yaml`."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from megatron_mmsr1 import config
from megatron_mmsr1.config import SearchConfig
from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.procs.listening import ListeningServer
from megatron_mmsr1.procs.ports import bind
from megatron_mmsr1.search.server.app import build_app
from megatron_mmsr1.search.server.launch import DRAIN_S

__all__ = ["build_app", "main", "serve"]


def serve(
    cfg: SearchConfig,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    cache_path: Path | None = None,
    ready: Callable[[int], None] | None = None,
    sock: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then end the calls in flight and return. `ready` is given the port once it listens;
    `sock` is a socket from `bind` to use instead of host and port. Raises UsageError or RunError before the first call."""
    sock = sock or bind(host, port)
    with sock:
        app = build_app(cfg, cache_path)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            backlog=8192,
            timeout_keep_alive=75,  # longer than any client of ours keeps a connection, so that none meets a closed one
            timeout_graceful_shutdown=DRAIN_S,
        )
        server = ListeningServer(settings, lambda: ready and ready(sock.getsockname()[1]))

        # uvicorn raises the signal again once it has drained; a drained server has ended well. Before it takes over the
        # signals, one must still stop it.
        def drain(*_: object) -> None:
            server.should_exit = True

        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, drain)
        server.run(sockets=[sock])


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        sock = socket.socket(fileno=args.fd) if args.fd is not None else None
        serve(_section(args), args.host, args.port, cache_path=args.cache, ready=_announce, sock=sock)
    except UsageError as e:
        print(e, file=sys.stderr)
        return 2
    except RunError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def _section(args: argparse.Namespace) -> SearchConfig:
    if args.config is not None:
        return config.load(args.config, args.overrides).search
    try:
        return SearchConfig.model_validate_json(args.json or "{}")
    except ValidationError as e:
        raise UsageError(f"--json: {e}") from None


def _announce(port: int) -> None:
    print(f"search server on port {port}", flush=True)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m megatron_mmsr1.search.server.main", description="Serve search from a local corpus."
    )
    p.add_argument("--config", help="a run's YAML; its search section is used")
    p.add_argument("--json", help="the search section itself, as JSON")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=0, help="0: any free one")
    p.add_argument("--cache", type=Path, help="SQLite file; default: no cache")
    p.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    p.add_argument("overrides", nargs="*", help="key=value, on top of --config")
    return p


if __name__ == "__main__":
    raise SystemExit(main())
