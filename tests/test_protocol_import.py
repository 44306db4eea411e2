"""Importing pickled prompts: a string comes in byte for byte, a program stays out."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_mmsr1.cli import main
from megatron_mmsr1.data.import_prompts import SYSTEM, import_prompts, read_string
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.protocol import Prompts

FIRST = "Answer with care.\n\nHere is the image and the question:\n<image> \r\n"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text", [FIRST, "", "café 🇪🇸", "x" * 300, "a\\u0041b\n"])
def test_a_string_is_read_whatever_the_protocol(tmp_path: Path, protocol: int, text: str) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(text, protocol))
    assert read_string(path) == text


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("value", [Bomb(), ["text"], {"a": "b"}, b"bytes", 5, None, ("a", "b")])
def test_anything_else_is_refused_and_never_run(tmp_path: Path, value: object, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(UsageError, match=r"p\.pkl"):
            read_string(path)
    assert not (tmp_path / "exploded").exists()


@given(junk=st.binary(max_size=60))
def test_junk_is_refused_cleanly(tmp_path_factory, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.pkl"
    path.write_bytes(junk)
    with contextlib.suppress(UsageError):
        assert isinstance(read_string(path), str)


def test_a_second_program_behind_the_string_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps("text") + pickle.dumps(Bomb()))
    with pytest.raises(UsageError, match="bytes behind"):
        read_string(path)
    path.write_bytes(pickle.dumps("text")[:-3])
    with pytest.raises(UsageError, match="not a pickle"):
        read_string(path)


def test_the_command_writes_prompts_that_load_byte_for_byte(tmp_path: Path, capsys) -> None:
    texts = [FIRST, "After the image: \t think.\n", " After the text…  "]
    files = []
    for n, text in enumerate(texts):
        files.append(tmp_path / f"{n}.pkl")
        files[-1].write_bytes(pickle.dumps(text))
    out = tmp_path / "new" / "original.yaml"
    assert main(["prompts", "import", *map(str, files), "--out", str(out)]) == 0
    assert Prompts.load(out) == Prompts(*texts, system=SYSTEM)
    assert main(["prompts", "import", *map(str, files[::-1]), "--out", str(out)]) == 2
    assert "2.pkl: holds no <image>" in capsys.readouterr().err


@example("<image>", "a\x85b", "\u2028")  # line ends to YAML
@given(st.text().map(lambda s: s + "<image>"), st.text(), st.text())
def test_any_texts_survive_the_yaml(tmp_path_factory, first: str, image: str, text: str) -> None:
    directory = tmp_path_factory.getbasetemp()
    for name, value in (("a", first), ("b", image), ("c", text)):
        (directory / name).write_bytes(pickle.dumps(value))
    a, b, c, out = (directory / name for name in ("a", "b", "c", "out.yaml"))
    assert import_prompts(a, b, c, out) == Prompts(first, image, text, system=SYSTEM)
