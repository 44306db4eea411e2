"""Which addresses the guarded fetcher may reach."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_mmsr1.search.web.urls import refusal

REFUSED = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255"),
    *("192.0.0.1", "192.0.0.9", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.254", "255.255.255.255"),
    *("::", "::1", "::2", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8", "64:ff9b:1:ffff::1"),
    *("100::1", "2001::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:808:808::1", "3fff::1", "5f00::1", "4000::1", "fd00:ec2::254"),
    *("fc00::1", "fdff::1", "fe80::1", "fe80::1%eth0", "fec0::1", "febf::1", "ff02::1", "ff0e::1", "e000::1"),
    *("2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1", "2606:4700::5efe:169.254.169.254"),
]


@pytest.mark.parametrize("address", REFUSED)
def test_not_of_the_public_internet(address: str) -> None:
    why = refusal(ip_address(address))
    assert why is not None and len(why) > 5


@pytest.mark.parametrize(
    "address",
    [
        *(
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "198.17.255.255",
            "223.255.255.255",
        ),
        *("2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001:80b::200e", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
        *("223.255.255.255", "2606:4700::5efe:8.8.8.8"),
    ],
)
def test_public(address: str) -> None:
    assert refusal(ip_address(address)) is None


@given(st.ip_addresses(v=4))
def test_carried_addresses_are_judged_as_themselves(inner: IPv4Address) -> None:
    n = int(inner)
    for outer in (f"::ffff:{inner}", f"64:ff9b::{inner}", f"2a00:1450::5efe:{inner}", f"2a00:1450::200:5efe:{inner}"):
        assert (refusal(ip_address(outer)) is None) == (refusal(inner) is None), outer
    six = IPv6Address((0x2002 << 112) | (n << 80) | 1)
    teredo = IPv6Address((0x20010000 << 96) | (n ^ 0xFFFFFFFF))
    assert refusal(six) and refusal(teredo)


@given(st.ip_addresses())
def test_never_laxer_than_the_standard_library(address: IPv4Address | IPv6Address) -> None:
    if refusal(address) is None:
        assert address.is_global and not address.is_multicast
