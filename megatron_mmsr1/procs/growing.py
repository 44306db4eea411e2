"""A file that another process appends lines to: a log, a metrics.jsonl."""

from __future__ import annotations

from pathlib import Path


class NewLines:
    """`read` gives the whole lines that came since. `from_start`: what stands there already counts as new."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self.path = path
        self._at = 0 if from_start or not path.is_file() else path.stat().st_size

    def read(self) -> list[bytes]:
        """Without their ends; none where there is no file yet. A file that was cut is read from its start."""
        if not self.path.is_file():
            return []
        if self.path.stat().st_size < self._at:
            self._at = 0
        with self.path.open("rb") as f:
            f.seek(self._at)
            data = f.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.splitlines()
