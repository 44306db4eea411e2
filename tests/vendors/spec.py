"""What a test needs to know of a vendor: how to be asked, what it documents, and what our backend must make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_mmsr1.trajectory import ToolStatus
from vendors.server import Handler, Reply

KEY = "sk-test/0123456789+abcdefghij=="  # characters that look otherwise in a URL


@dataclass(slots=True, frozen=True)
class Case:
    """A documented answer. `status` OK: the backend returns `gives`; else it raises that status. `tries`: requests it makes."""

    reply: Reply
    status: ToolStatus
    tries: int = 1
    billed: bool = False
    gives: Any = None


@dataclass(slots=True, frozen=True)
class Spec:
    """`found`: the success, only for a request with the right key; `gives`: what the backend makes of it.

    `error(code, words)`: the vendor's own envelope. `unlike`: JSON that is none of its documented answers.
    """

    kind: Literal["text", "read", "summarise"]
    backend: str
    key_name: str
    found: Handler
    gives: Any
    error: Callable[[int, str], Reply]
    cases: Mapping[str, Case]
    unlike: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
