"""serving.yaml: what `mmsr1 serve` needs to know of a trained model, as plain data beside its weights.

The keys are those of serving/settings.py, which stands above this package. Nothing of the machine that trained goes in: no
absolute path, no address of a server of one's own, no secret.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from megatron_mmsr1.config import RunConfig, SearchConfig
from megatron_mmsr1.config.affects import keys_of
from megatron_mmsr1.config.section import Affects
from megatron_mmsr1.data.files import write_text
from megatron_mmsr1.untyped import is_dict

NAME = "serving.yaml"
PROMPTS = "prompts.yaml"
# Of the machine (its budget too), or a disturbance that training wanted.
_NOT_SERVED = (*keys_of(SearchConfig, Affects.MACHINE), "mode", "missing_rate", "error_rate", "latency_s")
_BACKENDS = ("text", "image", "read", "summarise")
_SECRET = re.compile(r"key|secret|token|passw|credential", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
# What a model says when it searches; one that learned other words than sentences is given its own.
_REASONS = {"atlas": " need facts"}


def write(cfg: RunConfig, directory: Path) -> None:
    """Into a model's directory; prompts of a file of its own are copied beside."""
    data = plain(cfg)
    if Path(cfg.protocol.prompts).is_file():
        shutil.copyfile(cfg.protocol.prompts, directory / PROMPTS)
        data["protocol"]["prompts"] = PROMPTS
    head = (
        "# How this model was trained to search. Serve it: mmsr1 serve THIS_DIRECTORY   (key=value replaces what stands here)\n"
    )
    write_text(directory / NAME, head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def plain(cfg: RunConfig) -> dict[str, Any]:
    m = cfg.model
    out: dict[str, Any] = {
        "model": {"dtype": m.dtype, "min_pixels": m.min_pixels, "max_pixels": m.max_pixels},
        "protocol": cfg.protocol.model_dump(mode="json"),
        **({"tools": tools} if (tools := cfg.model_dump(mode="json", include={"tools"})["tools"]) else {}),
        "search": search(cfg),
    }
    reason = _REASONS.get(cfg.protocol.prompts)
    return out | ({"forced_reason": reason} if reason else {})


def search(cfg: RunConfig) -> dict[str, Any]:
    """What of the `search:` section another machine can use."""
    raw = cfg.search.model_dump(mode="json", exclude_defaults=True)
    out = {k: v for k, v in raw.items() if k not in _NOT_SERVED}
    for name in _BACKENDS:
        if name in out:
            out[name] = _backend(out[name])
    if "fetch" in out:
        out["fetch"].pop("allow", None)
    return _portable(out)


def _backend(section: dict[str, Any]) -> dict[str, Any]:
    if not _public(section.get("url")):
        section.pop("url", None)
    if not _VARIABLE.fullmatch(str(section.get("key", "A"))):  # it names a key; what is no name may be one
        section.pop("key")
    for options in ("options", "upload"):
        if options in section:
            section[options] = {
                k: v for k, v in section[options].items() if not _SECRET.search(k) or _VARIABLE.fullmatch(str(v))
            }
    return section


def _public(url: object) -> bool:
    if not isinstance(url, str):
        return False
    try:
        at = urlsplit(url)
        host = at.hostname or ""
        ipaddress.ip_address(host)
    except ValueError:
        at = urlsplit(url) if "[" not in url else None
        host = at.hostname or "" if at is not None else ""
        return at is not None and "." in host and at.username is None and not host.endswith((".local", ".internal"))
    return False


def _portable(value: Any) -> Any:
    """Without absolute paths and empty sections."""
    if not is_dict(value):
        return value
    kept = {k: _portable(v) for k, v in value.items() if not (isinstance(v, str) and is_absolute(v))}
    return {k: v for k, v in kept.items() if v != {}}


def is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or text.startswith("~") or bool(re.match(r"[A-Za-z]:[\\/]|file:", text))
