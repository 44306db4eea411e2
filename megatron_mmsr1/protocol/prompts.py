"""The texts around a conversation, as data: a released checkpoint wants its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.untyped import is_dict

DIRECTORY = Path(__file__).parent / "prompts"
_KEYS = {"image_search": "after_image", "text_search": "after_text"}


@dataclass(slots=True, frozen=True)
class Prompts:
    """`first` holds `<image>` where the pictures go; the question follows it. `after_image` and `after_text` follow the
    searches' results, `after[NAME]` those of the tool NAME (the key `after_NAME` of the file)."""

    first: str
    after_image: str
    after_text: str
    system: str = ""
    after: Mapping[str, str] = field(default_factory=dict[str, str])

    def after_call(self, tool: str) -> str:
        """What follows a result of this tool; "" where the set says nothing about it."""
        return getattr(self, _KEYS[tool]) if tool in _KEYS else self.after.get(tool, "")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Prompts:
        """A named set that ships with the package (a file of protocol/prompts/) or a YAML file with these keys."""
        path = Path(name_or_path)
        if not path.suffix:
            path = DIRECTORY / f"{name_or_path}.yaml"
        if not path.is_file():
            raise UsageError(f"no prompts at {path}: name a set that ships ({', '.join(shipped())}) or a YAML file")
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8")) or dict[str, str]()
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise UsageError(f"{path}: not valid YAML: {e}") from e
        if not is_dict(read) or not all(isinstance(k, str) and isinstance(v, str) for k, v in read.items()):
            raise UsageError(f"{path}: must map first, after_image, after_text and system to texts")
        data: dict[str, str] = read
        own = {"first", "after_image", "after_text", "system"}
        after = {k.removeprefix("after_"): data[k] for k in set(data) - own if k.startswith("after_")}
        unknown = {k for k in set(data) - own if not k.startswith("after_")}
        missing = own - {"system"} - set(data)
        if unknown or missing:
            raise UsageError(f"{path}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
        if "<image>" not in data["first"]:
            raise UsageError(f"{path}: `first` must hold <image> where the pictures go")
        return cls(**{k: data[k] for k in own if k in data}, after=after)


def shipped() -> list[str]:
    """Names of the sets that ship, sorted."""
    return sorted(p.stem for p in DIRECTORY.glob("*.yaml"))
