"""`python -m megatron_mmsr1.rollout.engines.transformers.server SPEC --fd N`: a checkpoint over HTTP, one turn at a time.

The event loop answers; one thread holds the model and does everything that touches it, in the order it was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from megatron_mmsr1.rollout.engines.transformers.model import Model

MAX_BODY = 2 << 30


class Server:
    def __init__(self, model: Model, version: int, path: Path) -> None:
        self.model, self.version, self.path = model, version, path
        self._one = ThreadPoolExecutor(max_workers=1)
        self._open = asyncio.Event()
        self._open.set()
        self._aborted: set[str] = set()
        self._running: set[str] = set()
        self._parts: Path | None = None
        self._sent = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        for path in ("health", "served", "checksum"):
            app.router.add_get(f"/{path}", getattr(self, path))
        for path in ("turn", "abort", "pause", "resume", "load", "begin", "send", "end"):
            app.router.add_post(f"/{path}", getattr(self, path))
        return app

    async def turn(self, request: web.Request) -> web.StreamResponse:
        said = orjson.loads(await request.read())
        rid = str(said["id"])
        self._running.add(rid)
        try:
            await self._open.wait()
            if not said["stream"]:
                try:
                    return _json(await self._run(self._sample, said, rid, lambda ids: None))
                except ValueError as e:
                    return _json({"error": str(e)}, 400)
            return await self._stream(request, said, rid)
        finally:
            self._running.discard(rid)
            self._aborted.discard(rid)

    async def _stream(self, request: web.Request, said: dict[str, Any], rid: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def tell(ids: list[int]) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, {"new": ids})

        task = asyncio.ensure_future(self._run(self._sample, said, rid, tell))
        task.add_done_callback(lambda t: lines.put_nowait({"error": str(t.exception())} if t.exception() else t.result()))
        while True:
            line = await lines.get()
            await response.write(orjson.dumps(line) + b"\n")
            if "new" not in line:
                return response

    def _sample(self, said: dict[str, Any], rid: str, tell: Any) -> dict[str, Any]:
        found = self.model.sample(said, stop=lambda: rid in self._aborted, tell=tell)
        return {**found, "version": self.version}

    async def abort(self, request: web.Request) -> web.Response:
        rid = orjson.loads(await request.read())["id"]
        self._aborted |= self._running if rid is None else {rid} & self._running
        return _json({})

    async def pause(self, request: web.Request) -> web.Response:
        self._open.clear()
        self._aborted |= self._running
        await self._run(lambda: None)  # behind the turn that was running
        return _json({})

    async def resume(self, request: web.Request) -> web.Response:
        self._aborted.clear()
        self._open.set()
        return _json({})

    async def health(self, request: web.Request) -> web.Response:
        return _json({})

    async def served(self, request: web.Request) -> web.Response:
        return _json({"path": str(self.path), "version": self.version, "architecture": self.model.architecture})

    async def checksum(self, request: web.Request) -> web.Response:
        return _json({"checksum": await self._run(self.model.checksum)})

    async def load(self, request: web.Request) -> web.Response:
        said = orjson.loads(await request.read())
        return await self._change(Path(said["path"]), int(said["version"]))

    async def begin(self, request: web.Request) -> web.Response:
        self._drop()
        self._parts, self._sent = Path(tempfile.mkdtemp(prefix="mmsr1-weights-")), 0
        return _json({})

    async def send(self, request: web.Request) -> web.Response:
        if self._parts is None:
            return _json({"error": "tensors outside an update: begin first"}, 400)
        (self._parts / f"{self._sent}.safetensors").write_bytes(await request.read())
        self._sent += 1
        return _json({})

    async def end(self, request: web.Request) -> web.Response:
        if self._parts is None:
            return _json({"error": "no update was begun"}, 400)
        version = int(orjson.loads(await request.read())["version"])
        try:
            return await self._change(self._parts, version, config=self.path)
        finally:
            self._drop()

    async def _change(self, path: Path, version: int, config: Path | None = None) -> web.Response:
        """The new model replaces the old one once it is whole: whatever fails leaves the old one."""
        self._aborted |= self._running if self._open.is_set() else set()
        try:
            await self._run(self.model.load, path, config or path)
        except (OSError, ValueError, RuntimeError) as e:
            return _json({"error": f"cannot load {path}: {type(e).__name__}: {e}"}, 400)
        self.version = version
        self.path = path if config is None else self.path
        return _json({})

    def _drop(self) -> None:
        if self._parts is not None:
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts = None

    async def _run(self, act: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._one, act, *args)


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--fd", type=int, required=True)
    args = parser.parse_args()
    spec = json.loads(args.spec)
    path, version = Path(spec["model"]), int(spec["version"])
    if spec["follow"]:
        from megatron_mmsr1.sync import published

        path, version = published.read(Path(spec["follow"])) or (path, version)
    model = Model(path, spec["device"])
    sock = socket.socket(fileno=args.fd)

    async def app() -> web.Application:
        return Server(model, version, path).app()

    web.run_app(app(), sock=sock, print=lambda *a: None, access_log=None)


if __name__ == "__main__":
    main()
