"""The gateway's API keys: a file of NAME:SHA256 lines, so that whoever reads it cannot call with what it holds.

A key has 256 random bits, for which a plain hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from pathlib import Path

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.upstream.secrets import private_lines
from serving.settings import GatewaySection

PREFIX = "mmsr1-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(r"([^:]+):([0-9a-f]{64})")


class Keys:
    """Names by the hash of their keys. Raises UsageError for a file that others can read, or that is torn."""

    def __init__(self, path: Path):
        self._names = _read(path)
        if not self._names:
            raise UsageError(f"gateway.keys: {path} holds no key: make one with mmsr1 serve --new-key NAME")

    def name(self, key: str) -> str | None:
        """Who holds `key`, None for nobody. Every entry is compared, in constant time."""
        digest = _digest(key)
        found = None
        for held, name in self._names.items():
            if hmac.compare_digest(held, digest):
                found = name
        return found


def open_keys(gateway: GatewaySection) -> Keys | None:
    """None: everybody on this machine may call. UsageError where others could too and there are no keys."""
    if gateway.keys is not None:
        return Keys(Path(gateway.keys))
    if not is_loopback(gateway.host):
        raise UsageError(
            f"gateway.host={gateway.host} can be reached from elsewhere and gateway.keys names no file: make a key with "
            "mmsr1 serve --new-key NAME, or listen on 127.0.0.1"
        )
    return None


def new_key(path: Path, name: str) -> str:
    """A key for `name`, whose hash is added to the file (made with mode 0600). The key itself is kept nowhere.

    Raises UsageError for a name that is taken or cannot stand in the file.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a key: letters, digits, '.', '_' and '-', at most 64")
    if path.exists() and name in _read(path).values():
        raise UsageError(f"{path} has a key named {name}: remove its line first, or take another name")
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as f:
            f.write(f"{name}:{_digest(key)}\n")
    except OSError as e:
        raise UsageError(f"{path} cannot be written ({e.strerror})") from None
    return key


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine's own."""
    if host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> dict[str, str]:
    out: dict[str, str] = {}
    for n, line in enumerate(private_lines(path, "gateway.keys"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or not _NAME.fullmatch(match[1]):
            raise UsageError(f"gateway.keys: {path}:{n} is not NAME:SHA256 (of the key, in hex)")
        out[match[2]] = match[1]
    return out
