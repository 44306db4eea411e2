"""A bucket of yours (AWS, MinIO, R2, Ceph, ...) holds the picture for one search; the Lens gets a presigned link to it.

Objects are deleted after their search. What a killed server leaves behind, a lifecycle rule of the bucket should expire (one
day on the prefix is enough).
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from pydantic import Field

from megatron_mmsr1.config.search import ImageSection
from megatron_mmsr1.config.section import Section
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.search.backends.tools import Tools, typed
from megatron_mmsr1.search.upstream.deadline import within
from megatron_mmsr1.search.upstream.limits import Outage
from megatron_mmsr1.search.upstream.secrets import Secret
from megatron_mmsr1.trajectory import ToolStatus

if TYPE_CHECKING:
    from obstore.store import S3Config

log = logging.getLogger(__name__)
_SUFFIX = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}


class Settings(Section):
    """`search.image.upload` for the s3 uploader."""

    bucket: str = Field(min_length=1)
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+/?$", description="default: AWS, by region")
    region: str = "us-east-1"
    prefix: str = Field(default="mmsr1/", description="of the objects' names")
    path_style: bool = Field(default=True, description="the bucket in the path; false: in the host name")
    expires_s: int = Field(default=600, gt=0, le=604_800, description="a link's life, if its object is not gone before")
    timeout_s: float = Field(default=10.0, gt=0, description="one upload")
    access_key: str = Field(default="AWS_ACCESS_KEY_ID", description="NAME of the key, in the environment or search.keys")
    secret_key: str = Field(default="AWS_SECRET_ACCESS_KEY", description="NAME of the secret key")
    session_token: str | None = Field(default=None, description="NAME of the token of temporary keys")


def make(section: ImageSection, tools: Tools) -> S3:
    settings = typed(section.upload, Settings, "search.image.upload")
    who = "search.image.uploader=s3"
    token = settings.session_token
    return S3(
        settings,
        tools.named_key(settings.access_key, who),
        tools.named_key(settings.secret_key, who),
        None if token is None else tools.named_key(token, who),
    )


class S3:
    """Raises UsageError for settings that no store can be made of."""

    name = "s3"

    def __init__(self, settings: Settings, access: Secret, secret: Secret, token: Secret | None = None):
        self._settings = settings
        self._where = f"bucket {settings.bucket} at {_endpoint(settings)}"
        # Said outright, since obstore completes what is missing from AWS_* variables that may be meant for something else.
        config: S3Config = {
            "endpoint": _endpoint(settings),
            "region": settings.region,
            "virtual_hosted_style_request": not settings.path_style,
            "access_key_id": access.value,
            "secret_access_key": secret.value,
            "disable_bulk_delete": True,  # not every store knows it
        }
        if token is not None:
            config["session_token"] = token.value
        limit = timedelta(seconds=settings.timeout_s)
        try:
            self._store = S3Store(
                settings.bucket,
                config=config,
                client_options={"allow_http": _endpoint(settings).startswith("http://"), "timeout": limit},
                retry_config={"max_retries": 1, "retry_timeout": limit},
            )
        except BaseError as e:
            raise UsageError(f"search.image.upload: no store can be made of it ({type(e).__name__})") from None
        self._deleting = Outage(f"deleting uploaded pictures from {self._where}", log)
        self._leaving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def public(self, data: bytes, media_type: str) -> AsyncGenerator[str]:
        name = f"{self._settings.prefix}{secrets.token_urlsafe(24)}{_SUFFIX.get(media_type, '')}"
        try:
            try:
                async with within(self._settings.timeout_s, f"the upload to {self._where}"):
                    about = {"Content-Type": media_type, "Cache-Control": "no-store"}
                    await obstore.put_async(self._store, name, data, attributes=about, use_multipart=False)
                    life = timedelta(seconds=self._settings.expires_s)
                    url = await obstore.sign_async(self._store, "GET", name, life)
            except (BaseError, FileNotFoundError) as e:  # the latter for every 404, that of a bucket too
                raise SearchFailure(ToolStatus.UPSTREAM_ERROR, f"{self._where} took no upload ({_code(e)})") from None
            yield url
        finally:
            # Beside the answer, which must not wait for it. For an upload that was cut off, too: nobody knows how far it got.
            task = asyncio.get_running_loop().create_task(self._delete(name))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _delete(self, name: str) -> None:
        try:
            await obstore.delete_async(self._store, name)
            self._deleting.worked()
        except FileNotFoundError:
            pass  # the upload never arrived
        except BaseError as e:
            self._deleting.failed(f"{_code(e)}; links end by themselves")

    async def close(self) -> None:
        await asyncio.gather(*self._leaving)


def _endpoint(settings: Settings) -> str:
    base = (settings.endpoint or f"https://s3.{settings.region}.amazonaws.com").rstrip("/")
    if settings.path_style:
        return base
    scheme, host = urlsplit(base)[:2]
    return f"{scheme}://{settings.bucket}.{host}"


def _code(e: Exception) -> str:
    """The kind of error, and S3's own word for it. Not its text: that may quote a request with its signature."""
    said = re.search(r"<Code>(\w{1,64})</Code>", str(e))
    return type(e).__name__ + (f", {said[1]}" if said else "")
