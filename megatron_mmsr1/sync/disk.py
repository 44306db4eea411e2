"""Weights through the file system: the trainer exports a checkpoint, each engine loads it in place, keeping its process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.sync.checkpoint import Tensors, require_same, tensors

# One greedy token: enough to learn which weights made it.
_PROBE = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}


class DiskSync:
    """Pushes to SGLang servers at `urls`, all at once. `directory` must be readable under the same path where they run.

    `timeout_s` bounds each request; loading a large checkpoint takes minutes from a slow disk.
    """

    def __init__(self, urls: Sequence[str], *, timeout_s: float = 600.0) -> None:
        self._urls = [u.rstrip("/") for u in urls]
        self._timeout_s = timeout_s
        self._expected: Tensors | None = None

    def push(self, directory: Path, version: int) -> None:
        """Update every engine and see each one answer with `version`.

        Requests in flight are aborted (between steps there are none) and the prefix cache is flushed. The files are checked
        first: whole, and of the same tensors as what the engine runs. Raises RunError that names the file, or every engine that
        failed, and why; an engine that could not load keeps its old weights and goes on serving them.
        With several engines of one parallel layout their checksums are compared where SGLang computes them.
        """
        found = tensors(directory)
        if self._expected is None:
            self._expected = self._served()
        if self._expected is not None:
            require_same(found, self._expected, directory)
        self._expected = found
        self._everywhere(lambda url: self._update(url, directory, version))
        self._everywhere(lambda url: self._verify(url, version))
        self._compare()

    def _served(self) -> Tensors | None:
        """The tensors of the checkpoint that the engines hold; None if it is not on this machine's disk."""
        for url in self._urls:
            try:
                r = httpx.get(f"{url}/model_info", timeout=self._timeout_s, trust_env=False)
                path = Path(r.raise_for_status().json()["model_path"])
            except httpx.HTTPError:
                continue  # the update itself will say what is wrong with this engine
            return tensors(path) if (path / "config.json").is_file() else None
        return None

    def _update(self, url: str, directory: Path, version: int) -> None:
        body = {
            "model_path": str(directory.resolve()),
            "weight_version": str(version),
            "abort_all_requests": True,
            "flush_cache": True,
        }
        answer = self._post(url, "/update_weights_from_disk", body)
        if not answer.get("success"):
            raise RunError(f"{url} keeps its old weights: {answer.get('message', answer)}")

    def _verify(self, url: str, version: int) -> None:
        meta = self._post(url, "/generate", _PROBE).get("meta_info", {})
        if str(meta.get("weight_version")) != str(version):
            raise RunError(f"{url} took version {version} but answers with weights of version {meta.get('weight_version')!r}")

    def _compare(self) -> None:
        if len(self._urls) < 2:
            return
        found: dict[str, str] = {}
        for url in self._urls:
            answer = self._post(url, "/weights_checker", {"action": "checksum"}, refused={})
            ranks = answer.get("payload") or answer.get("ranks") or []
            found[url] = " ".join(sorted(str(r.get("per_gpu_checksum")) for r in ranks))
        sums = {s for s in found.values() if s}
        if len(sums) > 1:
            raise RunError(f"the engines hold different weights after an update: {found}")

    def _everywhere(self, act: Callable[[str], None]) -> None:
        failures = []
        with ThreadPoolExecutor(max_workers=len(self._urls)) as pool:
            for done in [pool.submit(act, url) for url in self._urls]:
                error = done.exception()
                if isinstance(error, RunError):
                    failures.append(str(error))
                elif error is not None:
                    raise error
        if failures:
            raise RunError("weight update failed: " + "; ".join(failures))

    def _post(self, url: str, path: str, body: dict[str, Any], *, refused: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer, also of a 400, which carries the reason. `refused`: returned for a path that the server lacks."""
        try:
            # Environment proxies must not see traffic between engines.
            r = httpx.post(url + path, json=body, timeout=self._timeout_s, trust_env=False)
        except httpx.HTTPError as e:
            raise RunError(f"{url}{path}: {type(e).__name__}: {e}") from e
        if r.status_code == 404 and refused is not None:
            return refused
        try:
            answer = r.json()
        except ValueError:
            raise RunError(f"{url}{path}: HTTP {r.status_code}: {r.text[:300]}") from None
        if r.status_code not in (200, 400):
            raise RunError(f"{url}{path}: HTTP {r.status_code}: {answer}")
        return answer
