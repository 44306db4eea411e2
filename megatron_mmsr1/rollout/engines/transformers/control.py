"""The transformers engine from the trainer's side (`base.Control`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.rollout.engines.base import PauseMode, Served

if TYPE_CHECKING:
    import torch


class TransformersControl:
    """Caches nothing between turns, so there is nothing to flush."""

    def __init__(self, url: str, *, timeout_s: float = 600.0) -> None:
        self.url, self._timeout_s = url.rstrip("/"), timeout_s

    def health(self) -> None:
        self._ask("GET", "/health")

    def served(self) -> Served:
        said = self._ask("GET", "/served")
        return Served(Path(said["path"]) if said["path"] else None, said["version"], said["published"])

    def version(self) -> int:
        turn = {"ids": [0], "images": [], "max_new_tokens": 1, "temperature": 0, "seed": 0, "id": "version"}
        return int(self._ask("POST", "/turn", json={**turn, "banned_ids": [], "stop_ids": [], "stream": False})["version"])

    def pause(self, mode: PauseMode = "abort") -> None:
        if mode != "abort":
            raise RunError(f"{self.url}: the transformers engine can pause with mode=abort only, not {mode}")
        self._ask("POST", "/pause")

    def resume(self) -> None:
        self._ask("POST", "/resume")

    def abort(self) -> None:
        self._ask("POST", "/abort", json={"id": None})

    def load(self, directory: Path, version: int) -> None:
        self._ask("POST", "/load", json={"path": str(directory.resolve()), "version": version})

    def begin(self, version: int) -> None:
        self._ask("POST", "/begin")

    def send(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        from safetensors.torch import save

        self._ask("POST", "/send", content=save({n: t.detach().cpu().contiguous() for n, t in tensors}))

    def end(self, version: int) -> None:
        self._ask("POST", "/end", json={"version": version})

    def checksum(self) -> str:
        return str(self._ask("GET", "/checksum")["checksum"])

    def flush(self) -> None:
        """Nothing is cached."""

    def forget_pictures(self) -> None:
        """Nothing is cached."""

    def release(self, what: Iterable[Literal["weights", "kv_cache"]]) -> None:
        raise RunError(f"{self.url}: the transformers engine cannot give memory back")

    def reclaim(self, what: Iterable[Literal["weights", "kv_cache"]]) -> None:
        raise RunError(f"{self.url}: the transformers engine gave no memory back")

    def _ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        import httpx

        try:
            r = httpx.request(method, self.url + path, timeout=self._timeout_s, trust_env=False, **body)
            answer = r.json()
        except (httpx.HTTPError, ValueError) as e:
            raise RunError(f"{self.url}{path}: {type(e).__name__}: {e}") from e
        if r.status_code != 200:
            raise RunError(f"{self.url}{path}: {answer.get('error', answer)}")
        return answer
