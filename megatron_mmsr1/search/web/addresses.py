"""Which IP addresses may be reached: those of the public internet, whatever form they come in.

The networks are those of IANA's special-purpose registries (RFC 6890 and its followers) and of the clouds' metadata services.
Python's `is_global` alone is not enough: it takes NAT64 and 6to4 forms of loopback for global.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from megatron_mmsr1.search.backends.interfaces import SearchFailure
from megatron_mmsr1.trajectory import ToolStatus

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
