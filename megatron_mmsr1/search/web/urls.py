"""URLs that others name, taken apart once and strictly, so that what is checked is what is connected to.

A second parser that reads the same text in another way is how such checks are passed. Here the parts of a `Target` go straight
into the connection and the request; nothing parses the text again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import quote, unquote_to_bytes, urljoin

import idna

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.trajectory import ToolStatus

MAX_URL_CHARS = 8_192
PORTS = {"http": 80, "https": 443}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_IPV4_PART = re.compile(r"0x[0-9a-f]*|[0-9]+")
_PORT = re.compile(r"[0-9]{1,9}")
_PATH_SAFE = "!#$%&'()*+,/:;=?@[]~-._|"
# Names that never lead to the public internet: RFC 6761, RFC 8375, ICANN's .internal, and what routers and firms use.
_OWN = {"localhost", "localdomain", "local", "internal", "intranet", "corp", "home", "lan", "onion"}


@dataclass(slots=True, frozen=True)
class Target:
    """`host` is ASCII, lower case, without a trailing dot; `address` is set where it is an address, in its usual notation.

    `path`: what the request line says, query included, as ASCII.
    """

    scheme: str
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse(url: str) -> Target:
    """Raises Refused for all that is not plainly http(s)://HOST[:PORT][/PATH][?QUERY][#FRAGMENT]."""
    url = url.strip(" ")
    if len(url) > MAX_URL_CHARS:
        raise Refused(Reason.URL, f"the URL has {len(url)} characters; the limit is {MAX_URL_CHARS}")
    if _CONTROL.search(url):
        raise Refused(Reason.URL, "the URL has control characters")
    named = _SCHEME.match(url)
    if named is None or named[1].lower() not in PORTS:
        raise Refused(Reason.SCHEME, f"only http and https URLs are fetched, not {url[:40]!r}")
    scheme, rest = named[1].lower(), url[named.end() :]
    if not rest.startswith("//"):
        raise Refused(Reason.URL, f"no // after {scheme}:")
    end = re.search(r"[/?#\\]|$", rest[2:])
    assert end is not None
    authority, tail = rest[2 : 2 + end.start()], rest[2 + end.start() :]
    if tail.startswith("\\"):  # some take it for a slash, some for a part of the user's name
        raise Refused(Reason.URL, "a backslash stands in the URL's host")
    if "@" in authority:
        raise Refused(Reason.USERINFO, "the URL has a user name or password")
    host, address, port = _split(authority)
    try:
        path = quote(tail.partition("#")[0], safe=_PATH_SAFE)
    except UnicodeEncodeError:
        raise Refused(Reason.URL, "the URL has characters that no encoding has") from None
    return Target(scheme, host, PORTS[scheme] if port is None else port, path if path.startswith("/") else f"/{path}", address)


def join(base: Target, location: str) -> Target:
    """The target of a redirect; `location` may be relative. Raises Refused."""
    if len(location) > MAX_URL_CHARS or _CONTROL.search(location):
        raise Refused(Reason.URL, "a redirect leads to something that is no URL")
    try:
        return parse(urljoin(base.url, location.strip(" ")))
    except ValueError:  # of urljoin's own parser: brackets that do not close
        raise Refused(Reason.URL, "a redirect leads to something that is no URL") from None


class Allowed:
    """A team's own hosts, which may be private and on any port: HOST, or HOST:PORT for that port only. No wildcards.

    Raises UsageError that names the entry which is neither.
    """

    def __init__(self, entries: Iterable[str]):
        self._hosts: set[tuple[str, int | None]] = set()
        for entry in entries:
            try:
                text = f"[{entry}]" if entry.count(":") > 1 and not entry.startswith("[") else entry
                host, _, port = _split(text)
            except Refused as e:
                raise UsageError(f"search.fetch.allow: {entry!r} is neither HOST nor HOST:PORT ({e.detail})") from None
            self._hosts.add((host, port))

    def __contains__(self, target: Target) -> bool:
        return (target.host, None) in self._hosts or (target.host, target.port) in self._hosts


def own_name(host: str) -> bool:
    """Whether a host name is one of this machine's or of its network's, or is completed by the resolver to such a one."""
    labels = host.split(".")
    return len(labels) == 1 or labels[-1] in _OWN or host.endswith(".home.arpa")


def _split(authority: str) -> tuple[str, Address | None, int | None]:
    """(host, address, port or None) of HOST[:PORT]."""
    if authority.startswith("["):
        inside, bracket, colon_port = authority[1:].partition("]")
        if not bracket or (colon_port and not colon_port.startswith(":")):
            raise Refused(Reason.HOST, "brackets of an IPv6 address that do not close")
        try:
            address = IPv6Address(inside)
        except AddressValueError:
            raise Refused(Reason.HOST, f"{inside[:60]!r} is no IPv6 address") from None
        if address.scope_id is not None:
            raise Refused(Reason.HOST, "an IPv6 address with a zone")
        return str(address), address, _port(colon_port[1:])
    name, _, port = authority.partition(":")
    host = _host(name)
    labels = host.split(".")
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        address = _ipv4(labels)
        return str(address), address, _port(port)
    return host, None, _port(port)


def _port(digits: str) -> int | None:
    if not digits:
        return None
    if not _PORT.fullmatch(digits) or not 0 < int(digits) < 65_536:
        raise Refused(Reason.PORT, f"{digits[:20]!r} is no port")
    return int(digits)


def _host(name: str) -> str:
    try:
        host = unquote_to_bytes(name).decode()
        if not host.isascii() and len(host) <= 253:
            host = idna.encode(host, uts46=True).decode()
    except UnicodeError:  # idna's errors are of this class
        raise Refused(Reason.HOST, f"{name[:60]!r} is no host name") from None
    host = host.lower().removesuffix(".")
    if not 0 < len(host) <= 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise Refused(Reason.HOST, f"{name[:60]!r} is no host name")
    return host


def _ipv4(parts: list[str]) -> IPv4Address:
    """An address in any of the notations that C libraries read: fewer parts, hexadecimal, octal."""
    values: list[int] = []
    for part in parts:
        octal = len(part) > 1 and part.startswith("0") and not part.startswith("0x")
        if not _IPV4_PART.fullmatch(part) or (octal and re.search("[89]", part)):
            raise Refused(Reason.HOST, f"{'.'.join(parts)[:60]!r} is no IPv4 address")
        values.append(int(part[2:] or "0", 16) if part.startswith("0x") else int(part, 8 if octal else 10))
    *firsts, last = values
    room = 4 - len(firsts)
    if room < 1 or any(v > 255 for v in firsts) or last >= 256**room:
        raise Refused(Reason.HOST, f"{'.'.join(parts)[:60]!r} is no IPv4 address")
    return IPv4Address(last + sum(v << (8 * (3 - i)) for i, v in enumerate(firsts)))


# Which IP addresses may be reached: those of the public internet, whatever form they come in.
#
# The networks are those of IANA's special-purpose registries (RFC 6890 and its followers) and of the clouds' metadata services.
# Python's `is_global` alone is not enough: it takes NAT64 and 6to4 forms of loopback for global.

Address = IPv4Address | IPv6Address

_IPV4 = {
    IPv4Network(network): name
    for network, name in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared by a carrier's customers (CGNAT)",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "a cloud's own platform service",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "for protocols",
        "192.0.2.0/24": "for documentation",
        "192.88.99.0/24": "a 6to4 relay",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "for benchmarks",
        "198.51.100.0/24": "for documentation",
        "203.0.113.0/24": "for documentation",
        "224.0.0.0/4": "multicast",
        "255.255.255.255/32": "broadcast",
        "240.0.0.0/4": "reserved",
    }.items()
}
_IPV6 = {
    IPv6Network(network): name
    for network, name in {
        "::/128": "unspecified",
        "::1/128": "loopback",
        "64:ff9b:1::/48": "a NAT64 of its own network",
        "100::/64": "for discarding",
        "2001::/32": "a Teredo tunnel",
        "2001::/23": "for protocols",
        "2001:db8::/32": "for documentation",
        "2002::/16": "a 6to4 tunnel",
        "3fff::/20": "for documentation",
        "fc00::/7": "private (unique local)",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local",
        "ff00::/8": "multicast",
    }.items()
}
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that IANA has given out
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # the upper half of the interface identifier, RFC 5214


def refusal(address: Address) -> str | None:
    """Why `address` may not be reached, in words; None if it may.

    Of the forms that carry an IPv4 address, IPv4-mapped, NAT64 and ISATAP ones are as good as what they carry; tunnels that
    nobody uses any more (6to4, Teredo, IPv4-compatible) are refused whatever they carry.
    """
    if isinstance(address, IPv4Address):
        for network, name in _IPV4.items():
            if address in network:
                return name
        return None if address.is_global else "not public"
    carried = _carried(address)
    if carried is not None and (why := refusal(carried)) is not None:
        return f"{carried} in another form, which is {why}"
    if address.ipv4_mapped is not None or address in _NAT64:
        return None
    for network, name in _IPV6.items():
        if address in network:
            return name
    return None if address in _GLOBAL_UNICAST else "not public"


def _carried(address: IPv6Address) -> IPv4Address | None:
    low = IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None or address in _NAT64 or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return low
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    return None


# How a guarded fetch ends that gives nothing: refused by a rule of ours, or failed on the way.
class Reason(StrEnum):
    """The rule that refused."""

    URL = "url"  # not a URL, too long, or with control characters
    SCHEME = "scheme"
    USERINFO = "userinfo"
    HOST = "host"  # no host name, or one that means this machine or its own network
    PORT = "port"
    ADDRESS = "address"  # an address that is not on the public internet
    REDIRECTS = "redirects"  # too many
    DOWNGRADE = "downgrade"  # from https to http
    CONTENT_TYPE = "content_type"
    ENCODING = "encoding"
    SIZE = "size"


class Refused(SearchFailure):
    """The guard's answer to a URL, an address or a body: `reason` is the rule, `detail` the words. Never worth a retry."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(ToolStatus.REFUSED, detail)
        self.reason = reason


class FetchFailed(SearchFailure):
    """No rule was broken, but no page came: no such host, no connection, an HTTP error, a torn body, the deadline."""
