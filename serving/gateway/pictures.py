"""A user's pictures: from a data: URI or through the guarded fetcher, decoded within caps before anything else sees them."""

from __future__ import annotations

import asyncio
import binascii
from concurrent.futures import ThreadPoolExecutor

from megatron_mmsr1.config.search import FetchSection
from megatron_mmsr1.rollout.context import INLINE_IMAGE_BYTES
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.fetch import IMAGES, Fetcher, Refused
from megatron_mmsr1.search.web.pictures import decode
from serving.gateway.errors import ApiError
from serving.settings import GatewaySection

_DECODERS = 2  # at once: a picture at the pixel cap takes a lot of memory while it is decoded


class Pictures:
    def __init__(self, gateway: GatewaySection, fetch: FetchSection, fetcher: Fetcher | None = None):
        self._limits, self._remote = gateway.limits, gateway.remote_images
        self._fetcher = fetcher or Fetcher(fetch.model_copy(update={"max_bytes": self._limits.image_bytes}))
        self._pool = ThreadPoolExecutor(_DECODERS, "pictures")

    async def load(self, url: str, param: str) -> bytes:
        """The picture's bytes, which decode. Raises ApiError 400."""
        if url[:5].lower() != "data:":
            return await self._checked(await self._fetch(url, param), param)
        payload = _payload(url, param)
        if len(payload) // 4 * 3 > self._limits.image_bytes + 3:
            raise self._too_large(param)
        if len(payload) <= INLINE_IMAGE_BYTES:
            return await self._checked(_unpack(payload, param), param)
        data = await asyncio.get_running_loop().run_in_executor(self._pool, _unpack, payload, param)
        return await self._checked(data, param)

    async def _fetch(self, url: str, param: str) -> bytes:
        if not self._remote:
            raise ApiError(400, "this gateway takes pictures as data: URIs only", param=param, code="remote_images_disabled")
        try:
            return (await self._fetcher.get(url, IMAGES)).body
        except Refused as e:
            # The rule, but not its words: they tell what a name of an inner network resolves to.
            raise ApiError(
                400, f"the picture is not fetched from there ({e.reason})", param=param, code="image_refused"
            ) from None
        except SearchFailure:
            raise ApiError(400, "the picture could not be fetched", param=param, code="image_not_fetched") from None

    async def _checked(self, data: bytes, param: str) -> bytes:
        if len(data) > self._limits.image_bytes:
            raise self._too_large(param)
        if len(data) <= INLINE_IMAGE_BYTES:
            self._decode(data, param)
        else:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._decode, data, param)
        return data

    def _decode(self, data: bytes, param: str) -> None:
        try:
            decode(data, max_pixels=self._limits.image_pixels)
        except SearchFailure as e:
            raise ApiError(400, e.detail, param=param, code="invalid_image") from None

    def _too_large(self, param: str) -> ApiError:
        why = f"the picture is larger than {self._limits.image_bytes} bytes"
        return ApiError(400, why, param=param, code="image_too_large")


def _payload(uri: str, param: str) -> str:
    head, comma, payload = uri.partition(",")
    words = head[5:].lower().split(";")
    if not comma or words[-1] != "base64" or not words[0].startswith("image/"):
        raise ApiError(400, "a picture's data: URI is data:image/...;base64,...", param=param, code="invalid_image")
    return payload


def _unpack(payload: str, param: str) -> bytes:
    try:
        return binascii.a2b_base64(payload.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ApiError(400, "the picture's base64 is broken", param=param, code="invalid_image") from None
