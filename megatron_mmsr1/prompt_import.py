"""Import the prompts of a released checkpoint from pickles, without executing them.

A pickle is a program; loading one runs it. The originals hold one string each, so their opcodes are read with `pickletools`
and anything but framing, memo and one string is refused.
"""

from __future__ import annotations

import pickletools
from pathlib import Path

import yaml

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import Prompts

HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
STRINGS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}


def pickled_string(data: bytes, where: str) -> str:
    """The one string that a pickle holds. Raises UsageError for anything else, naming what was found."""
    found: list[str] = []
    try:
        for op, arg, at in pickletools.genops(data):
            if op.name in STRINGS:
                found.append(str(arg))
            elif op.name not in HARMLESS:
                raise UsageError(
                    f"{where}: holds more than one string (opcode {op.name} at byte {at}); refused, nothing was executed"
                )
    except ValueError as e:
        raise UsageError(f"{where}: not a pickle: {e}") from e
    if len(found) != 1:
        raise UsageError(f"{where}: holds {len(found)} strings; a prompt is exactly one")
    return found[0]


def import_prompts(pickles: list[Path], out: Path) -> None:
    """Write a prompts file from three pickles: the first prompt, the one after an image search, the one after a text search.

    `<image>` is put at the end of the first prompt if it is not in it: the original appends the picture there.
    Raises UsageError if a pickle is refused, or if the result cannot be loaded as prompts.
    """
    first, after_image, after_text = (pickled_string(p.read_bytes(), str(p)) for p in pickles)
    if "<image>" not in first:
        first += "<image>"
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = {"first": first, "after_image": after_image, "after_text": after_text, "system": ""}
    out.write_text(yaml.safe_dump(texts, sort_keys=False, allow_unicode=True))
    loaded = Prompts.load(out)
    if (loaded.first, loaded.after_image, loaded.after_text) != (first, after_image, after_text):
        raise UsageError(f"{out}: YAML does not give the prompts back byte for byte; please report which characters they hold")
    print(f"wrote {out}: use it with protocol.prompts={out}")
