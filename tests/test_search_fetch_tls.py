"""The guarded fetcher over TLS: the name goes into SNI, the certificate is checked against it, and there is no way down."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hostile import PUBLIC, Canary, World, canary, http, redirect

from megatron_mmsr1.search.fetch import FetchFailed, Reason, Refused, fetch


class Secure:
    """A server with a certificate for site.test, which remembers the names that it was asked for."""

    def __init__(self, bird: Canary, trusting: ssl.SSLContext, asked: list[str | None]):
        self.bird, self.asked = bird, asked
        self.world = World(bird, {"wrong.test": [[PUBLIC]]})
        self.world.tls = trusting


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[Secure]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("site.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    both = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (tmp_path / "site.pem").write_bytes(both + cert.public_bytes(serialization.Encoding.PEM))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "site.pem")
    asked: list[str | None] = []
    server.sni_callback = lambda _socket, host, _context: asked.append(host)
    trusting = ssl.create_default_context(cadata=cert.public_bytes(serialization.Encoding.PEM).decode())

    async def respond(line: str, writer: asyncio.StreamWriter) -> None:
        writer.write(redirect("http://site.test/") if "/down" in line else http(b"<p>Safe.</p>"))

    async with canary(respond, tls=server) as bird:
        yield Secure(bird, trusting, asked)


async def test_the_name_is_in_sni_and_host_while_the_address_is_pinned(secure: Secure) -> None:
    fetched = await fetch("https://SITE.test/x", network=secure.world)
    assert fetched.text == "<p>Safe.</p>"
    assert secure.asked == ["site.test"]
    assert b"\r\nHost: site.test\r\n" in secure.bird.requests[0]
    assert secure.world.connected == [(PUBLIC, 443)]


async def test_from_https_to_http_is_refused(secure: Secure) -> None:
    with pytest.raises(Refused) as e:
        await fetch("https://site.test/down", network=secure.world)
    assert e.value.reason is Reason.DOWNGRADE
    assert secure.bird.connections == 1


async def test_a_certificate_for_another_name_is_no_page(secure: Secure) -> None:
    with pytest.raises(FetchFailed, match="certificate"):
        await fetch("https://wrong.test/", network=secure.world)
    assert not secure.bird.requests


async def test_an_unknown_issuer_is_no_page(secure: Secure) -> None:
    with pytest.raises(FetchFailed, match="certificate"):
        await fetch("https://site.test/", network=World(secure.bird))
    assert not secure.bird.requests


async def test_plain_text_where_tls_was_wanted() -> None:
    async with canary(http(b"x")) as bird:
        with pytest.raises(FetchFailed):
            await fetch("https://site.test/", network=World(bird), deadline_s=0.5)
