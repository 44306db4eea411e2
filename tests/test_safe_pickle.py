"""Pickles that are read and never run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from pickle_fixtures import jpeg, pickled, picture, raw
from PIL import Image

from megatron_mmsr1.data.safe_pickle import Inert, load
from megatron_mmsr1.errors import UsageError
from megatron_mmsr1.search.backends.recorded_source import PIL_IMAGES, read

PROTOCOLS = range(6)
PLAIN: dict[Any, Any] = {
    "text": ["", "é\u4e2d\n\\ud800", "\U0001f600" * 300],
    "bytes": [b"", b"\x00\xff" * 300, bytearray(b"x" * 10)],
    "numbers": (0, 1, 255, 256, -1, 2**31, -(2**40), 2**300, 1.5, float("inf"), True, False, None),
    "nested": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}]},
    7: list(range(2500)),
}


# --------------------------------------------------------------------------------------------------- plain values, read
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    read_back = load(pickled(tmp_path, PLAIN, protocol))
    assert read_back == PLAIN
    assert [type(v) for v in read_back["numbers"]] == [type(v) for v in PLAIN["numbers"]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_referred_to_twice_comes_back_twice(tmp_path: Path, protocol: int) -> None:
    shared = ["same"]
    assert load(pickled(tmp_path, {"a": shared, "b": shared}, protocol)) == {"a": ["same"], "b": ["same"]}


def test_optimised_pickles_are_read_too(tmp_path: Path) -> None:
    assert load(raw(tmp_path, pickletools.optimize(pickle.dumps(PLAIN, 4)))) == PLAIN


# ------------------------------------------------------------------------------------------------- everything else, not
class Runs:
    """Unpickled, it leaves a canary."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_would_run_something_is_refused_and_does_not(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    path = pickled(tmp_path, {"fvqa_train_0": ["fine", Runs(canary)]}, protocol)
    with pytest.raises(UsageError, match=r"GLOBAL.*(posix|os|nt)[. ]system at byte \d+"):
        read(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # it would have: the test can fail
    assert canary.exists()


HOSTILE = {
    "builtins by name": b"cbuiltins\neval\n(Vprint(1)\ntR.",
    "the same in Python 2": b"c__builtin__\neval\n(Vprint(1)\ntR.",
    "INST": b"(Vtouch x\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nVtouch x\no.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "STACK_GLOBAL out of a memo": b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x00\x93.",
    "a name that is no string": b"\x80\x04K\x01K\x02\x93.",
    "a class's name as a value": b"c_codecs\nencode\n.",
    "NEWOBJ of a number": b"\x80\x02K\x01)\x81.",
    "NEWOBJ_EX": b"\x80\x04cPIL.Image\nImage\n)}\x92.",
    "NEWOBJ of a name that is no class": b"\x80\x02c_codecs\nencode\n)\x81.",
    "BUILD on a dict": b"}}b.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pname\n.",
    "BINPERSID": b"Vname\nQ.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "REDUCE of a list": b"](tR.",
    "REDUCE with no tuple": b"c_codecs\nencode\n]R.",
    "an encoding that is none of ours": b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
    "bytes of a number: zeros as many": b"c__builtin__\nbytes\n(I999999999\ntR.",
    "object itself": b"c__builtin__\nobject\n)R.",
    "a reconstructor of anything": b"ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
    "a list for a key": b"}(]I1\nu.",
    "APPEND to a dict": b"}I1\na.",
    "SETITEM of a list": b"]I1\nI2\ns.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_instructions_beyond_plain_values_are_refused(tmp_path: Path, what: str) -> None:
    for names in (frozenset[str](), PIL_IMAGES):
        with pytest.raises(UsageError, match=r"at byte \d+|a value must stand"):
            load(raw(tmp_path, HOSTILE[what]), names)


def test_bombs_are_refused(tmp_path: Path) -> None:
    billion: list[Any] = ["lol"]
    for _ in range(30):
        billion = [billion] * 10
    with pytest.raises(UsageError, match="over 5000000 values"):
        load(pickled(tmp_path, billion))

    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(UsageError, match="deeper than 32"):
        load(pickled(tmp_path, deep))
    with pytest.raises(UsageError, match="deeper"):
        load(raw(tmp_path, b"]" * 200_000 + b"a" * 199_999 + b"."))

    looped: list[Any] = []
    looped.append({"self": looped})
    with pytest.raises(UsageError, match="contains itself"):
        load(pickled(tmp_path, looped))

    # A megabyte of text, turned into bytes a hundred times.
    text = (
        b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x01X\x06\x00\x00\x00latin1q\x02]("
    )
    with pytest.raises(UsageError, match="a bomb"):
        load(raw(tmp_path, text + b"h\x00h\x01h\x02\x86R" * 100 + b"e."))

    with pytest.raises(UsageError, match="more than 1000 instructions"):
        load(pickled(tmp_path, list(range(2000))), max_instructions=1000)
    with pytest.raises(UsageError, match="torn"):
        load(raw(tmp_path, b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"short."))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_torn_file_is_refused_wherever_it_was_cut(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps({"id": {"titles": ["one", "two"], "n": (1, 2.5), "b": b"\x00\x01"}}, protocol)
    for cut in range(len(whole)):
        with pytest.raises(UsageError):
            load(raw(tmp_path, whole[:cut]))
    with pytest.raises(UsageError, match="behind"):
        load(raw(tmp_path, whole + b"more"))


def test_damaged_pickles_end_in_a_usage_error_or_a_value_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    values = 0
    for protocol in PROTOCOLS:
        whole = pickle.dumps({"id": [picture(1), "title", (1, 2.5, None), b"\x00\x01"]}, protocol)
        for _ in range(150):
            broken = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            try:
                load(raw(tmp_path, bytes(broken)), PIL_IMAGES)
                values += 1
            except UsageError:
                pass
    assert values  # damage to pixels is not noticed, so both ends were met


def test_a_file_that_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.pkl"):
        load(tmp_path / "nothing.pkl")
    with pytest.raises(UsageError, match="empty"):
        load(raw(tmp_path, b""))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pil_image_is_read_as_what_was_written_for_it(tmp_path: Path, protocol: int) -> None:
    source = Image.open(io.BytesIO(jpeg(picture(0))))
    path = pickled(tmp_path, [source], protocol)
    with pytest.raises(UsageError, match=r"GLOBAL.* at byte"):
        load(path)
    (held,) = load(path, PIL_IMAGES)
    assert isinstance(held, Inert)
    assert held.name == "PIL.JpegImagePlugin.JpegImageFile"
    assert held.state[1:3] == ["RGB", source.size] and held.state[4] == source.tobytes()
