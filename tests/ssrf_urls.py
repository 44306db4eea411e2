"""URLs, names and redirects that a guarded fetcher must refuse, each with the rule that does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hostile import PUBLIC

from megatron_mmsr1.search.fetch import Reason

# What a resolver might say of names that lead inside.
NAMES: Mapping[str, Sequence[Sequence[str]]] = {
    "loop.test": [["127.0.0.1"]],
    "loop6.test": [["::1"]],
    "metadata.test": [["169.254.169.254"]],
    "half.test": [[PUBLIC, "10.0.0.7"]],
    "mapped.test": [["::ffff:192.168.1.1"]],
    "nat64.test": [["64:ff9b::a9fe:a9fe"]],
    "sixtofour.test": [["2002:7f00:1::"]],
    "scoped.test": [["fe80::1%eth0"]],
}
_LOOPBACK = """
    127.0.0.1 127.1 127.0.1 127.255.255.254 0x7f.1 0x7f000001 0X7F.0.0.0X1 2130706433 017700000001 0177.0.0.1 0177.1
    00177.0x0.0.1 127.0.0.1. 0 0.0.0.0 0x0 0x 00 127.0x.1
    ①②⑦.⓪.⓪.① １２７.０.０.１ 127。0。0。1 127．0．0．1 𝟏𝟐𝟕.0.0.1 %31%32%37.0.0.1 127%2E0%2e0.1
    [::1] [::] [0:0:0:0:0:0:0:1] [0000::0001] [::127.0.0.1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::FFFF:7F00:0001]
    [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::7f00:1] [2002:7f00:1::] [2002:7f00:0001::1]
    [2001:0:7f00:1::] [2001:0:4136:e378:8000:63bf:80ff:fffe] [2606:4700::5efe:127.0.0.1]
    loop.test LOOP.TEST. loop6.test
"""
_INSIDE = """
    169.254.169.254 2852039166 0xA9FEA9FE 0251.0376.0251.0376 0251.254.43518 ①⑥⑨.254.169.254 ⑯⑨。②⑤④。⑯⑨｡②⑤④
    [::ffff:169.254.169.254] [::ffff:a9fe:a9fe] [64:ff9b::a9fe:a9fe] [2002:a9fe:a9fe::] [fd00:ec2::254] [fe80::1] [fec0::1]
    100.100.100.200 100.64.0.1 10.0.0.1 172.16.0.1 172.31.255.255 192.168.0.1 192.0.0.192 198.18.0.1 192.0.2.1 224.0.0.1
    240.0.0.1 255.255.255.255 168.63.129.16 [ff02::1] [2001:db8::1]
    metadata.test half.test mapped.test nat64.test sixtofour.test scoped.test
"""
_OWN_NAMES = """
    localhost LOCALHOST localhost. a.localhost ⓛocalhost %6cocalhost intranet metadata.google.internal printer.local
    nas.home.arpa x.svc.cluster.local
"""
_NO_HOST = """
    . .. site..test localhost.. 256.1.1.1 1.2.3.4.5 08.1.1.1 4294967296 1..2 1.2.3.0x1ffffffff site%00.test site%20.test
    [::1%25lo] [fe80::1%eth0] [::1 [] [v1.a] [127.0.0.1] [::1]x site.test%2fa site%2etest%5c %ff.test site.test%40x ℀.test
"""
_USERS = "site.test@127.0.0.1 site.test%2f@127.0.0.1 u:p@site.test @site.test :@site.test a@b@site.test"
_PORTS = "0 21 22 25 79 81 444 2375 6379 8080 9200 11211 65535 65536 -1 +80 0x50 ８０ 80:80 999999999999"
_SCHEMES = "ftp gopher ws wss dict ldap tftp sftp http+unix httpx -http"
_NO_SCHEME = """
    file:///etc/passwd FILE:/etc/passwd data:text/html,x javascript:alert(1) jar:http://site.test!/ blob:http://site.test/
    view-source:http://site.test about:blank //site.test/ /etc/passwd site.test ://site.test
"""
_TWO_READINGS = r"""
    http://site.test\@127.0.0.1/ http://127.0.0.1\@site.test/ http://site.test\.127.0.0.1/ http:\\127.0.0.1/ http:127.0.0.1
    http:/127.0.0.1/ https:site.test
"""


def _all(reason: Reason, around: str, each: str) -> list[tuple[str, Reason]]:
    return [(around.format(x), reason) for x in each.split()]


URLS: list[tuple[str, Reason]] = [
    *_all(Reason.ADDRESS, "http://{}/", _LOOPBACK),
    *_all(Reason.ADDRESS, "http://{}/", _INSIDE),
    *_all(Reason.ADDRESS, "https://{}", "127.0.0.1 [::1] 169.254.169.254 loop.test 127.0.0.1:80"),
    *_all(Reason.ADDRESS, "http://127.0.0.1{}", ":443/ #@site.test/ ?@site.test/ /@site.test"),
    ("http://127.0.0.\u00ad1/", Reason.ADDRESS),  # a soft hyphen, which IDNA drops
    *_all(Reason.HOST, "http://{}/", _OWN_NAMES),
    *_all(Reason.HOST, "http://{}/", _NO_HOST),
    *_all(Reason.HOST, "http:{}", "// ///127.0.0.1/ ////127.0.0.1/ //?@site.test //#@site.test"),
    ("http://site .test/", Reason.HOST),
    (f"http://{'a' * 64}.test/", Reason.HOST),
    (f"http://{'a.' * 150}test/", Reason.HOST),
    *_all(Reason.USERINFO, "http://{}/", _USERS),
    *_all(Reason.PORT, "http://site.test:{}/", _PORTS),
    *_all(Reason.PORT, "http://{}/", "127.0.0.1:6379 [::1]:22 127.0.0.1:8080"),
    *_all(Reason.SCHEME, "{}://site.test/", _SCHEMES),
    *_all(Reason.SCHEME, "{}", _NO_SCHEME),
    ("", Reason.SCHEME),
    (" ", Reason.SCHEME),
    *_all(Reason.URL, "{}", _TWO_READINGS),
    *(
        (url, Reason.URL)
        for url in ("http://site.test/\r\nX: y", "http://site.test\r\n/", "http://site.test/\tx", "\x00http://site.test/")
    ),
    *(
        (url, Reason.URL)
        for url in ("http://site.te\nst/", "ht\ntp://site.test/", "http://site.test/\x7f", "http://site.test/\ud800")
    ),
    (f"http://site.test/{'a' * 10_000}", Reason.URL),
    (f"http://{'a.' * 5_000}test/", Reason.URL),
]
# Where a public page may not send us.
LOCATIONS: list[tuple[str, Reason]] = [
    *_all(
        Reason.ADDRESS,
        "http://{}/",
        "127.0.0.1 [::1] 0x7f.1 169.254.169.254 [64:ff9b::7f00:1] [2002:7f00:1::] loop.test half.test",
    ),
    *_all(Reason.ADDRESS, "//{}/x", "127.0.0.1 [::1] metadata.test 100.100.100.200"),
    *_all(Reason.HOST, "http://{}/", "localhost metadata.google.internal"),
    *_all(Reason.USERINFO, "{}", "http://u:p@other.test/ //u@other.test/"),
    *_all(Reason.PORT, "{}", "http://site.test:8080/ //other.test:22/"),
    *_all(Reason.SCHEME, "{}", "file:///etc/passwd gopher://127.0.0.1:6379/_x data:text/html,x javascript:x"),
    *_all(Reason.URL, "{}", r"http://other.test\@127.0.0.1/ http://[::1/"),
    ("http://other.test/\x01", Reason.URL),
    (f"http://other.test/{'a' * 9_000}", Reason.URL),
    ("/again", Reason.REDIRECTS),  # a loop
]
