"""SerpApi's google_lens and Serper's /lens as their documents describe them, with a web of thumbnails beside them.

serpapi.com/google-lens-api, /api-status-and-error-codes, /search-errors; serper.dev's playground.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from vendors.raw import RawServer, Request, reply

KEY = "key/with+odd=characters"
Row = tuple[str, str, str]  # title, page, thumbnail
JSON = {"content-type": "application/json; charset=utf-8"}


class LensServer(RawServer):
    """`rows`: what a search finds. `script`: answers for the next searches instead, each the bytes of a whole HTTP answer, or
    seconds to wait before the connection is closed. `look`: how the vendor looks at the picture's URL: (HTTP status, bytes).
    `files`: path -> answer of the thumbnails' hosts."""

    def __init__(self, look: Callable[[str], Awaitable[tuple[int, bytes]]]) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.script: list[bytes | float] = []
        self.files: dict[str, bytes] = {}
        self.asked: list[Request] = []
        self.fetched: list[str] = []  # thumbnails' paths
        self.pictures: list[bytes] = []  # what the vendor saw
        self._look = look

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path not in ("/search.json", "/lens"):
            self.fetched.append(request.path)
            writer.write(self.files.get(request.path, reply(404, b"gone", {"content-type": "text/html"})))
            return
        self.asked.append(request)
        said = self.script.pop(0) if self.script else await self._search(request)
        if isinstance(said, bytes):
            writer.write(said)
            if b"content-length: 999999" in said:  # a torn answer ends here
                writer.close()
        else:
            await asyncio.sleep(said)
            writer.close()

    async def _search(self, request: Request) -> bytes:
        if request.path == "/search.json":
            return await self._serpapi(request)
        return await self._serper(request)

    async def _serpapi(self, request: Request) -> bytes:
        p = request.params
        if p.get("api_key") != KEY:
            return refused(401, {"error": "Invalid API key. Your API key should be here: https://serpapi.com/manage-api-key"})
        if request.method != "GET" or p.get("engine") != "google_lens" or "url" not in p:
            return refused(400, {"error": "Missing query `url` parameter."})
        if not await self._seen(p["url"]):
            return serpapi_empty()
        rows = [
            {"position": n, "title": t, "link": page, "source": "example", "thumbnail": thumb, "image": thumb + "?full"}
            for n, (t, page, thumb) in enumerate(self.rows, 1)
        ]
        return found({"search_metadata": {"status": "Success"}, "visual_matches": rows})

    async def _serper(self, request: Request) -> bytes:
        if request.headers.get("x-api-key") != KEY:
            return refused(403, {"message": "Unauthorized.", "statusCode": 403})
        body = json.loads(request.body)
        if request.method != "POST" or "url" not in body:
            return refused(400, {"message": "Missing url parameter", "statusCode": 400})
        rows = self.rows if await self._seen(body["url"]) else []
        organic = [
            {"title": t, "source": "example", "link": page, "imageUrl": thumb + "?full", "thumbnailUrl": thumb}
            for t, page, thumb in rows
        ]
        return found({"searchParameters": {"url": body["url"], "type": "lens"}, "organic": organic, "credits": 3})

    async def _seen(self, url: str) -> bool:
        status, data = await self._look(url)
        self.pictures += [data] if status == 200 else []
        return status == 200


def found(body: Any) -> bytes:
    return reply(200, json.dumps(body).encode(), JSON)


def refused(status: int, body: Any, **headers: str) -> bytes:
    return reply(status, json.dumps(body).encode(), {**JSON, **{k.replace("_", "-"): v for k, v in headers.items()}})


def serpapi_empty() -> bytes:
    words = "Google Lens hasn't returned any results for this query."
    return found({"search_metadata": {"status": "Success"}, "error": words})
