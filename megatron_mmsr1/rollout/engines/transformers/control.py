"""The transformers engine from the trainer's side (`base.Control`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.procs import http
from megatron_mmsr1.rollout.engines.base import PauseMode, Served, Unreachable

if TYPE_CHECKING:
    import torch


class TransformersControl:
    """Caches nothing between turns, so there is nothing to flush."""

    def __init__(self, url: str, *, timeout_s: float = 600.0) -> None:
        self.url, self._timeout_s = url.rstrip("/"), timeout_s

    def health(self) -> None:
        self._get("/health")

    def served(self) -> Served:
        said = self._get("/served")
        return Served(Path(said["path"]), said["version"], architecture=said["architecture"])

    def version(self) -> int:
        turn = {"ids": [0], "images": [], "max_new_tokens": 1, "temperature": 0, "seed": 0, "id": "version"}
        return int(self._post("/turn", {**turn, "banned_ids": [], "stop_ids": [], "stream": False})["version"])

    def pause(self, mode: PauseMode = "abort") -> None:
        if mode != "abort":
            raise RunError(f"{self.url}: the transformers engine can pause with mode=abort only, not {mode}")
        self._post("/pause")

    def resume(self) -> None:
        self._post("/resume")

    def abort(self) -> None:
        self._post("/abort", {"id": None})

    def load(self, directory: Path, version: int) -> None:
        self._post("/load", {"path": str(directory.resolve()), "version": version})

    def begin(self, version: int) -> None:
        self._post("/begin")

    def send(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        from safetensors.torch import save

        self._post("/send", save({n: t.detach().cpu().contiguous() for n, t in tensors}))

    def end(self, version: int) -> None:
        self._post("/end", {"version": version})

    def checksum(self) -> str:
        return str(self._get("/checksum")["checksum"])

    def flush(self) -> None:
        """Nothing is cached."""

    def release(self, what: Iterable[Literal["weights", "kv_cache"]]) -> None:
        raise RunError(f"{self.url}: the transformers engine cannot give memory back")

    def reclaim(self, what: Iterable[Literal["weights", "kv_cache"]]) -> None:
        """It gave none back."""

    def _get(self, path: str) -> dict[str, Any]:
        return self._read(path, lambda url: http.get(url, timeout_s=self._timeout_s))

    def _post(self, path: str, body: Any = None) -> dict[str, Any]:
        return self._read(path, lambda url: http.post(url, body or {}, timeout_s=self._timeout_s))

    def _read(self, path: str, ask: Callable[[str], http.Answer]) -> dict[str, Any]:
        try:
            found = ask(self.url + path)
            answer = found.json()
        except http.Unanswered as e:
            raise Unreachable(str(e)) from None
        if not found.ok:
            raise RunError(f"{self.url}{path}: {answer.get('error', answer)}")
        return answer
