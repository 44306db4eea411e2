"""Engines that run already, asked before they are used: do they answer, and do they serve the model that is meant?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mmsr1.errors import RunError, UsageError
from megatron_mmsr1.sync.checkpoint import differing, require_same, tensors

if TYPE_CHECKING:
    from megatron_mmsr1.rollout.engines.base import Control, Served

TRIES, PAUSE_S = 3, 1.0


def require_model(engines: Sequence[Control], model: Path, key: str, *, weights: bool) -> int:
    """All `engines` serve a model of the tensors and the tokenizer of the checkpoint `model`; with `weights`, which nobody is
    going to give them, `model` itself, all under one version. Returns that version.

    An engine names its checkpoint. Where that cannot be read here, only the architecture is compared, which the engine says.
    Raises RunError for one that does not answer, UsageError that names the engine (`key` is the setting) and the difference.
    """
    found = {e.url: ask(e, key) for e in engines}
    for url, held in found.items():
        require_tokenizer(held, model, f"{key}: {url}")
        _require_tensors(held, model, f"{key}: {url}")
        if weights:
            _require_weights(held, model, f"{key}: {url}")
    versions = {held.version for held in found.values()}
    if weights and len(versions) > 1:
        said = ", ".join(f"{url} version {held.version}" for url, held in found.items())
        raise UsageError(f"{key}: the engines hold different weights: {said}. Name those of one version")
    return min(versions, default=0)


def ask(engine: Control, key: str) -> Served:
    """What it says that it holds. RunError, after a few tries, where it does not answer."""
    for last in range(TRIES):
        try:
            return engine.served()
        except RunError as e:
            if last == TRIES - 1:
                raise RunError(f"{key}: {engine.url} does not answer as an engine ({e}): start it, or name none") from None
        time.sleep(PAUSE_S)
    raise AssertionError


def require_tokenizer(held: Served, model: Path, where: str) -> None:
    """UsageError where the engine's tokenizer can be read here and is another one."""
    at = held.tokenizer or held.path
    if at is None:
        return
    theirs, ours = at / "tokenizer.json", model / "tokenizer.json"
    if theirs.is_file() and ours.is_file() and theirs.read_bytes() != ours.read_bytes():
        raise UsageError(f"{where} serves {at}, whose tokenizer is not that of {model}: name the model that it serves")


def _require_tensors(held: Served, model: Path, where: str) -> None:
    ours = str((json.loads((model / "config.json").read_text()).get("architectures") or [""])[0])
    if held.architecture and ours and held.architecture != ours:
        raise UsageError(f"{where} serves a {held.architecture}, and {model} is a {ours}: name the model that it serves")
    if (path := _readable(held)) is not None:
        try:
            require_same(tensors(path), tensors(model), path)
        except RunError as e:
            raise UsageError(f"{where} serves another model than {model}: {e}") from None


def _require_weights(held: Served, model: Path, where: str) -> None:
    path = _readable(held)
    if path is not None and path.resolve() != model.resolve() and (name := differing(path, model)):
        raise UsageError(
            f"{where} serves {path}, whose weights are not those of {model} ({name} differs): name the model that it "
            "serves, or give it these weights"
        )


def _readable(held: Served) -> Path | None:
    """Its checkpoint, where that is a directory here; a relative path is one of another process's."""
    found = held.path is not None and held.path.is_absolute() and (held.path / "config.json").is_file()
    return held.path if found else None
