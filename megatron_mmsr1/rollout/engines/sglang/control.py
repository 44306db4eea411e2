"""SGLang from the trainer's side: pause, weights, caches, memory (`base.Control`)."""

from __future__ import annotations

import base64
import io
import socket
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs import http
from megatron_mmsr1.rollout.engines.base import PauseMode, Served, Unreachable
from megatron_mmsr1.rollout.engines.sglang.wire import version_number

if TYPE_CHECKING:
    import torch

# One greedy token: enough to learn which weights made it.
_PROBE = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
# Versions that an engine says while its memory is given back, and from then until it has weights again.
RELEASED, EMPTY = "released", "empty"


class SGLangControl:
    """One SGLang server (a worker: the router forwards none of this). `timeout_s` bounds each request; loading a large
    checkpoint from a slow disk takes minutes. `idle_within_s`: how long a flush waits for the requests that are running."""

    def __init__(self, url: str, *, timeout_s: float = 600.0, idle_within_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._idle_within_s = idle_within_s

    def health(self) -> None:
        self._ask("/health_generate")

    def served(self) -> Served:
        said = self._ask("/model_info")
        path, tokenizer = said.get("model_path"), said.get("tokenizer_path")
        return Served(
            Path(path) if path else None,
            version_number(said.get("weight_version")),
            Path(tokenizer) if tokenizer else None,
            str((said.get("architectures") or [""])[0]),
        )

    def version(self) -> int:
        return version_number(self._ask("/generate", _PROBE).get("meta_info", {}).get("weight_version"))

    def attention(self) -> str:
        said = self._ask("/server_info")
        kinds = [said.get(f"{part}_attention_backend") or said.get("attention_backend") for part in ("prefill", "decode")]
        return " and ".join(dict.fromkeys(str(k) for k in kinds if k))

    def pause(self, mode: PauseMode = "abort") -> None:
        self._ask("/pause_generation", {"mode": mode})

    def resume(self) -> None:
        # Emptying CUDA's cache, which is the default, touches CUDA on a machine that has none.
        self._ask("/continue_generation", {"torch_empty_cache": False})

    def abort(self) -> None:
        self._ask("/abort_request", {"abort_all": True})

    def load(self, directory: Path, version: int) -> None:
        # SGLang's own flush within an update kills the scheduler if a request is not quite over: one whose answer is out, but
        # whose batch the scheduler has not put away yet, is enough. `flush` waits instead.
        body = {"model_path": str(directory.resolve()), "weight_version": str(version), "flush_cache": False}
        with _updates(self.url):
            self._done(self._ask("/update_weights_from_disk", {**body, "abort_all_requests": True}), f"load {directory}")
            self.flush()

    def begin(self, version: int) -> None:
        answer = self._ask("/begin_weight_update", {"selector": "all"})
        if not answer.get("success", True):
            # A session that an earlier failure left open refuses the next one until it is closed.
            self._ask("/end_weight_update", {})
            answer = self._ask("/begin_weight_update", {"selector": "all"})
        self._done(answer, "begin an update")

    def send(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Through shared memory: only for engines on this machine, and of one rank (tp_size 1)."""
        body = {"serialized_named_tensors": [_shared(tensors)], "flush_cache": False, "abort_all_requests": False}
        with _updates(self.url):
            answer = self._ask("/update_weights_from_tensor", body)
        self._done(answer, f"take {tensors[0][0]} and {len(tensors) - 1} more")

    def end(self, version: int) -> None:
        self._done(self._ask("/end_weight_update", {}), "end the update")
        self.flush()
        self._say(str(version))

    def checksum(self) -> str:
        answer = self._ask("/weights_checker", {"action": "checksum"}, refused={})
        ranks = answer.get("payload") or answer.get("ranks") or []
        return " ".join(sorted(str(r.get("per_gpu_checksum")) for r in ranks))

    def flush(self) -> None:
        self._done(self._ask(f"/flush_cache?timeout={self._idle_within_s:g}", {}), "flush its cache")

    def release(self, what: Iterable[Literal["weights", "kv_cache"]]) -> None:
        """On a CPU SGLang keeps its memory: only what it caches goes."""
        self._ask("/release_memory_occupation", {"tags": list(what)})
        self._say(RELEASED)

    def reclaim(self, what: Iterable[Literal["weights", "kv_cache"]]) -> None:
        if self._ask("/model_info").get("weight_version") == RELEASED:  # what was not released it cannot resume: it dies of it
            self._ask("/resume_memory_occupation", {"tags": list(what)})
            self._say(EMPTY)

    def _say(self, version: str) -> None:
        body = {"new_version": version, "abort_all_requests": False}
        self._done(self._ask("/update_weight_version", body), f"take the version {version}")

    def _done(self, answer: dict[str, Any], what: str) -> None:
        if not answer.get("success"):
            raise RunError(f"{self.url} did not {what}: {answer.get('message', answer)}")

    def _ask(self, path: str, body: dict[str, Any] | None = None, *, refused: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer, also of a 400, which carries the reason. `refused`: returned for a path that the server lacks."""
        url = self.url + path
        try:
            found = (
                http.get(url, timeout_s=self._timeout_s) if body is None else http.post(url, body, timeout_s=self._timeout_s)
            )
            if found.status == 404 and refused is not None:
                return refused
            if found.status in (200, 400) and not found.body.lstrip().startswith((b"{", b"[")):
                return {"success": found.ok, "message": found.text.strip()}  # SGLang says some things in plain text
            answer = found.json()
        except http.Unanswered as e:
            raise Unreachable(str(e)) from None
        if found.status not in (200, 400):
            raise RunError(f"{url}: HTTP {found.status}: {answer}")
        return answer if isinstance(answer, dict) else {"success": found.ok, "answer": answer}


@cache
def _updates(url: str) -> Lock:
    """Held while an engine's weights change, under whatever name it is called: of two changes at once its scheduler dies."""
    at = urlsplit(url)
    try:
        address = socket.getaddrinfo(at.hostname, at.port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except OSError:  # no such host, or one of IPv6: known by its name
        return _lock((at.hostname, at.port))
    return _lock(address)


def _lock(key: object) -> Lock:
    return _LOCKS.setdefault(key, Lock())  # in one step: two threads that ask first get the same one


_LOCKS: dict[object, Lock] = {}


def _shared(tensors: Sequence[tuple[str, torch.Tensor]]) -> str:
    """The tensors as handles to shared memory, pickled as SGLang reads them, in base64."""
    from multiprocessing.reduction import ForkingPickler

    import torch.multiprocessing  # registers how tensors are pickled

    # Handles of the other strategy are file descriptors, which do not travel over HTTP.
    torch.multiprocessing.set_sharing_strategy("file_system")
    out = io.BytesIO()
    ForkingPickler(out).dump([(name, t.detach().contiguous().cpu().share_memory_()) for name, t in tensors])
    return base64.b64encode(out.getvalue()).decode()
