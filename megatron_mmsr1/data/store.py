"""Images by content: every canonical PNG once, under its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_mmsr1.data.files import write_bytes
from megatron_mmsr1.errors import RunError

if TYPE_CHECKING:
    from megatron_mmsr1.data.images import CanonicalImage


class ImageStore:
    """Files `root/<first two digits>/<sha256>.png`, or memory if `root` is None.

    Writing is atomic and idempotent, so many processes may share one directory.
    """

    def __init__(self, root: str | Path | None) -> None:
        self.root = None if root is None else Path(root)
        self._memory: dict[str, bytes] = {}

    def put(self, image: CanonicalImage | bytes) -> str:
        """Keep the PNG and return the hex digest of its SHA-256."""
        png = image if isinstance(image, bytes) else image.png
        sha = hashlib.sha256(png).hexdigest()
        if self.root is None:
            self._memory[sha] = png
            return sha
        path = self._path(self.root, sha)
        if not path.exists():
            write_bytes(path, png, sync=False)
        return sha

    def get(self, sha: str) -> bytes:
        """The PNG under this digest. RunError if it is missing, or if the file no longer has that digest."""
        if self.root is None:
            if sha not in self._memory:
                raise RunError(f"image {sha} is not in the in-memory store")
            return self._memory[sha]
        path = self._path(self.root, sha)
        try:
            png = path.read_bytes()
        except FileNotFoundError as e:
            raise RunError(f"image {sha} is missing from the store: no file {path}") from e
        if hashlib.sha256(png).hexdigest() != sha:
            raise RunError(f"{path} is damaged: its content no longer has the hash of its name; delete it and put it again")
        return png

    def __contains__(self, sha: str) -> bool:
        return sha in self._memory if self.root is None else self._path(self.root, sha).exists()

    @staticmethod
    def _path(root: Path, sha: str) -> Path:
        return root / sha[:2] / f"{sha}.png"
