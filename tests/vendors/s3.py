"""A small S3 on loopback: PUT, GET and DELETE of objects, each only with a valid AWS Signature Version 4.

The signature is computed here from the specification (docs.aws.amazon.com, "Authenticating Requests"), not by the client.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from vendors.raw import RawServer, Request, reply

ACCESS, SECRET, REGION = "AKIDTEST", "secret/with+odd=characters", "eu-test-1"


class S3Server(RawServer):
    """`objects`: path -> (bytes, content type). `fail`: (status, S3's code) for PUT and DELETE. `stall`: PUTs never answer."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.seen: list[tuple[str, str]] = []  # method and path
        self.fail: tuple[int, str] | None = None
        self.stall = False
        self.clock_ahead = timedelta(0)

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if self.stall and request.method == "PUT":
            await asyncio.Event().wait()
        status, kind, body = self._answer(request.method, request.target, request.headers, request.body)
        writer.write(reply(status, body, {"content-type": kind, "etag": '"x"'}))

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        path = unquote(urlsplit(target).path)
        self.seen.append((method, path))
        if why := self._unsigned(method, target, headers, body):
            return _error(403, why)
        if method in ("PUT", "DELETE") and self.fail is not None:
            return _error(*self.fail)
        if method == "PUT":
            self.objects[path] = body, headers.get("content-type", "")
            return 200, "application/xml", b""
        if method == "DELETE":
            self.objects.pop(path, None)
            return 204, "application/xml", b""
        if method == "GET" and path in self.objects:
            return 200, self.objects[path][1], self.objects[path][0]
        return _error(404, "NoSuchKey")

    def _unsigned(self, method: str, target: str, headers: dict[str, str], body: bytes) -> str:
        """Why the request's signature is not valid; "" if it is."""
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if "X-Amz-Signature" in query:
            signature = query.pop("X-Amz-Signature")
            credential, signed, stamp = query["X-Amz-Credential"], query["X-Amz-SignedHeaders"], query["X-Amz-Date"]
            payload = "UNSIGNED-PAYLOAD"
            end = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) + timedelta(
                seconds=int(query["X-Amz-Expires"])
            )
            if datetime.now(UTC) + self.clock_ahead > end:
                return "AccessDenied"
        elif headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 "):
            parts = dict(p.strip().split("=", 1) for p in headers["authorization"].split(" ", 1)[1].split(","))
            signature, credential, signed = parts["Signature"], parts["Credential"], parts["SignedHeaders"]
            stamp, payload = headers["x-amz-date"], headers["x-amz-content-sha256"]
            if payload != "UNSIGNED-PAYLOAD" and payload != hashlib.sha256(body).hexdigest():
                return "XAmzContentSHA256Mismatch"
        else:
            return "MissingSecurityHeader"
        access, day, region, service, end_of_scope = credential.split("/")
        if (access, region, service, end_of_scope) != (ACCESS, REGION, "s3", "aws4_request"):
            return "InvalidAccessKeyId"
        canonical = "\n".join(
            [
                method,
                url.path,
                "&".join(sorted(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in query.items())),
                *(f"{name}:{' '.join(headers[name].split())}" for name in signed.split(";")),
                "",
                signed,
                payload,
            ]
        )
        scope = f"{day}/{region}/{service}/{end_of_scope}"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = ("AWS4" + SECRET).encode()
        for step in (day, region, service, end_of_scope):
            key = hmac.new(key, step.encode(), hashlib.sha256).digest()
        right = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        return "" if hmac.compare_digest(right, signature) else "SignatureDoesNotMatch"


def _error(status: int, code: str) -> tuple[int, str, bytes]:
    return status, "application/xml", f"<Error><Code>{code}</Code><Message>key {ACCESS}</Message></Error>".encode()
