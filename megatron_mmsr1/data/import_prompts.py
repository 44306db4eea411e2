"""Read the original's pickled prompts without unpickling them, and write a prompts file of ours.

    mmsr1 prompts import FIRST.pkl AFTER_IMAGE.pkl AFTER_TEXT.pkl --out PROMPTS.yaml

A pickle is a program. This one is never run: its instructions are listed, and only a program that does nothing but push one
string is accepted.
"""

from __future__ import annotations

import pickletools
from pathlib import Path

import yaml

from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import Prompts

_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
MAX_BYTES = 1 << 20
# What Qwen2.5-VL's chat template puts before a conversation that has no system message, as the original's had none.
SYSTEM = "You are a helpful assistant."


def read_string(path: Path) -> str:
    """The one string that a pickle file holds. UsageError if the file is, or does, anything else."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from e
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} has {len(data)} bytes: no prompt is that long")
    found: list[str] = []
    end = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            end = (position or 0) + 1
            if opcode.name in _STRINGS and isinstance(argument, str):
                found.append(argument)
            elif opcode.name not in _HARMLESS:
                raise UsageError(f"{path}: instruction {opcode.name} at byte {position}; only a plain string is imported")
    # What pickletools raises on bytes that are no pickle, or one cut short.
    except (ValueError, IndexError, EOFError) as e:
        raise UsageError(f"{path} is not a pickle of a string: {e}") from e
    if len(found) != 1 or end != len(data):
        raise UsageError(f"{path}: {len(found)} strings and {len(data) - end} bytes behind them; need exactly one string")
    return found[0]


def import_prompts(first: Path, after_image: Path, after_text: Path, out: Path) -> Prompts:
    """Write the three prompts to the YAML file `out` and return them as `Prompts.load` reads them back, byte for byte."""
    texts: dict[str, str] = {
        "system": SYSTEM,
        "first": read_string(first),
        "after_image": read_string(after_image),
        "after_text": read_string(after_text),
    }
    if "<image>" not in texts["first"]:
        raise UsageError(f"{first}: holds no <image>, so it is not the prompt of the first round")
    out.parent.mkdir(parents=True, exist_ok=True)
    written = yaml.safe_dump(texts, allow_unicode=True, sort_keys=False)
    if yaml.safe_load(written) != texts:  # as it is with NEL (U+0085), which YAML reads as a line's end
        written = yaml.safe_dump(texts, sort_keys=False)  # escapes all but ASCII
    out.write_text(written, encoding="utf-8")
    prompts = Prompts.load(out)
    if any(getattr(prompts, key) != text for key, text in texts.items()):
        raise UsageError(f"{out}: the prompts hold characters that YAML does not keep")
    return prompts
