"""The worked examples of docs/extend/: a fenced block that begins with `# NAME.EXT` is a file; the tests run it as it is."""

from __future__ import annotations

import re
from pathlib import Path

EXTEND = Path(__file__).parent.parent / "docs" / "extend"
_BLOCK = re.compile(r"^```\w*\n# (?P<name>[\w./-]+\.\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def write_examples(page: str, into: Path) -> dict[str, Path]:
    """Write every file that docs/extend/PAGE shows below `into`; returns them by name. AssertionError if it shows none."""
    found = {m["name"]: m["text"] for m in _BLOCK.finditer((EXTEND / page).read_text(encoding="utf-8"))}
    assert found, f"docs/extend/{page} shows no file"
    paths = {}
    for name, text in found.items():
        paths[name] = into / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_text(f"# {name}\n{text}", encoding="utf-8")
    return paths
