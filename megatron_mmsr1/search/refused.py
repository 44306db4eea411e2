"""How a guarded fetch ends that gives nothing: refused by a rule of ours, or failed on the way."""

from __future__ import annotations

from enum import StrEnum

from megatron_mmsr1.search.interfaces import SearchFailure
from megatron_mmsr1.trajectory import ToolStatus


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
