"""The snapshot's file format: a plain tar of two members, so that `tar xOf FILE manifest.json` shows what it is.

`entries.zst` is one zstd frame over: a magic line; each content in the order of its sha256 as b"C", its size (4 bytes, little
endian), the value; each entry in the order of its key as b"E", key (32), sha256 of its content (32), length of its kind (1),
kind; b"." at the end. The times at which entries were made are left out: equal entries give equal bytes (under one version of
zstd). `manifest.json` follows, since the hash that it holds is known by then.

Reading trusts nothing: no member is ever written under a name from the archive, sizes are bounded before they are believed,
order and hashes are checked as they pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, BinaryIO, cast

import zstandard
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator

from megatron_mmsr1.errors import RunError
from megatron_mmsr1.search.store.entries import KIND, MAX_VALUE
from megatron_mmsr1.search.store.file import SCHEMA

FORMAT = "mmsr1-snapshot 1"
TIME = "%Y-%m-%dT%H:%M:%SZ"
_MAGIC = b"mmsr1 snapshot payload 1\n"
_PAYLOAD, _MANIFEST = "entries.zst", "manifest.json"
_MAX_MANIFEST = 1 << 20
_LEVEL = 6
_WINDOW = 1 << 27  # what any zstd decoder accepts; a frame that asks for more is refused
_BLOCK = tarfile.BLOCKSIZE
_HASH = struct.Struct("<32s32sB")  # of an entry: key, content, length of the kind

Record = tuple[bytes, str, bytes]  # an entry: key, kind, sha256 of its content


class BackendNote(BaseModel):
    """A backend that answered while the store was filled."""

    model_config = ConfigDict(extra="allow")
    name: str
    version: str
    local: bool = False

    @field_validator("name", "version")
    @classmethod
    def _harmless(cls, text: str) -> str:
        if not text.isprintable():  # it is shown in a terminal
            raise ValueError("it holds control characters")
        return text


def _is_time(text: str | None) -> str | None:
    if text is not None:
        time.strptime(text, TIME)  # raises ValueError
    return text


class Manifest(BaseModel):
    """What a snapshot holds. `created`: when its newest entry was made, so that the same store gives the same file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: str = FORMAT
    store_schema: int = Field(default=SCHEMA, alias="schema")
    id: str = Field(pattern="^[0-9a-f]{16}$")
    entries: dict[str, NonNegativeInt]  # by kind
    contents: NonNegativeInt
    bytes: NonNegativeInt  # of the payload before compression
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of entries.zst
    created: Annotated[str | None, AfterValidator(_is_time)]  # UTC; None: no entries
    backends: dict[str, BackendNote]
    version: str  # of this project

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, sort_keys=True) + "\n"


# ------------------------------------------------------------------------------------------------------------------ writing
class Payload:
    """Writes the first member at the start of `f`; `finish` closes the archive with the manifest."""

    def __init__(self, f: BinaryIO):
        self._f = f
        self._hash = hashlib.sha256()
        self._zip = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        self.bytes = self._packed = 0
        f.write(bytes(_BLOCK))  # the header's place: the size is not known yet
        self._write(_MAGIC)

    def content(self, value: bytes) -> None:
        self._write(b"C" + len(value).to_bytes(4, "little"))
        self._write(value)

    def entry(self, key: bytes, kind: str, content: bytes) -> None:
        self._write(b"E" + _HASH.pack(key, content, len(kind)) + kind.encode())

    def end(self) -> str:
        """The payload's sha256."""
        self._write(b".")
        self._keep(self._zip.flush())
        self._f.write(bytes(-self._packed % _BLOCK))
        return self._hash.hexdigest()

    def finish(self, manifest: Manifest) -> None:
        text = manifest.to_json().encode()
        self._f.write(_header(_MANIFEST, len(text)) + text + bytes(-len(text) % _BLOCK) + bytes(2 * _BLOCK))
        self._f.seek(0)
        self._f.write(_header(_PAYLOAD, self._packed))

    def _write(self, data: bytes) -> None:
        self.bytes += len(data)
        self._keep(self._zip.compress(data))

    def _keep(self, packed: bytes) -> None:
        self._packed += len(packed)
        self._hash.update(packed)
        self._f.write(packed)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


# ------------------------------------------------------------------------------------------------------------------ reading
class Bad(RunError):
    """The file is no snapshot, or not a whole one."""


def read_manifest(f: BinaryIO) -> tuple[Manifest, int]:
    """The manifest, and the payload's size in bytes; the payload was found to have the manifest's sha256. Raises Bad."""
    end = f.seek(0, os.SEEK_END)
    f.seek(0)
    packed = _size_of(f, _PAYLOAD, end)
    digest, left = hashlib.sha256(), packed
    while left:
        chunk = f.read(min(left, 1 << 20))
        if not chunk:
            raise Bad("it ends early")
        digest.update(chunk)
        left -= len(chunk)
    f.seek(-packed % _BLOCK, os.SEEK_CUR)
    size = _size_of(f, _MANIFEST, end)
    if size > _MAX_MANIFEST:
        raise Bad(f"its manifest has {size} bytes")
    try:
        manifest = Manifest.model_validate_json(f.read(size))
    except ValidationError as e:
        first = e.errors(include_input=False)[0]
        raise Bad(f"its manifest is wrong: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if (manifest.format, manifest.store_schema) != (FORMAT, SCHEMA):
        what = f"{manifest.format!r} of schema {manifest.store_schema}"
        raise Bad(f"it is {what}, and this version reads {FORMAT!r} of schema {SCHEMA}")
    if digest.hexdigest() != manifest.sha256:
        raise Bad("its payload does not have the sha256 of its manifest: it is damaged or was changed")
    return manifest, packed


def _size_of(f: BinaryIO, name: str, end: int) -> int:
    """Of the member that starts here, which must be the plain file `name`."""
    try:
        info = tarfile.TarInfo.frombuf(f.read(_BLOCK), "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        raise Bad("it is no snapshot of this project") from None
    if info.name != name or info.type != tarfile.REGTYPE:
        raise Bad(f"it holds {info.name!r} where a snapshot has the file {name}")
    if not 0 <= info.size <= end - f.tell():
        raise Bad("it ends early")
    return info.size


def read_payload(f: BinaryIO, manifest: Manifest, packed: int) -> Iterator[bytes | Record]:
    """The contents' values, then the entries. Raises Bad; never more than the manifest's bytes are decompressed."""
    f.seek(_BLOCK)
    read = _Reader(f, packed, manifest.bytes)
    if read(len(_MAGIC)) != _MAGIC:
        raise Bad("its payload is none of this project")
    last, tag = b"", read(1)
    while tag == b"C":
        size = int.from_bytes(read(4), "little")
        if size > MAX_VALUE:
            raise Bad(f"a value has {size} bytes; {MAX_VALUE} are allowed")
        value = read(size)
        last = _ascending(last, hashlib.sha256(value).digest())
        yield value
        tag = read(1)
    last = b""
    while tag == b"E":
        key, content, n = _HASH.unpack(read(_HASH.size))
        last = _ascending(last, key)
        yield key, _kind(read(n)), content
        tag = read(1)
    if tag != b"." or read.left:
        raise Bad("its payload does not end where its manifest says")


class _Reader:
    """From `packed` bytes of a file exactly as many decompressed ones as asked for, and never more than `left` in all."""

    def __init__(self, f: BinaryIO, packed: int, left: int):
        self._f, self._packed, self.left = f, packed, left
        bounded = cast(BinaryIO, self)  # of which the decompressor only wants `read`
        self._source = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(bounded, closefd=False)

    def read(self, n: int) -> bytes:
        """For the decompressor, which would read on into the next member."""
        data = self._f.read(min(n, self._packed))
        self._packed -= len(data)
        return data

    def __call__(self, n: int) -> bytes:
        if n > self.left:
            raise Bad("its payload is larger than its manifest says")
        self.left -= n
        parts: list[bytes] = []
        while n:
            try:
                part = self._source.read(n)
            except zstandard.ZstdError as e:
                raise Bad(f"its payload cannot be decompressed ({e})") from None
            if not part:
                raise Bad("its payload ends early")
            parts.append(part)
            n -= len(part)
        return b"".join(parts)


def _ascending(last: bytes, now: bytes) -> bytes:
    if last >= now:
        raise Bad("its payload is not in order")
    return now


def _kind(raw: bytes) -> str:
    text = raw.decode("ascii", "replace")
    if not KIND.fullmatch(text):
        raise Bad(f"it holds an entry of kind {text!r}")
    return text


def backends_note(text: str | None) -> dict[str, BackendNote]:
    """From the store's own note. Raises ValueError."""
    notes: Iterable[tuple[str, object]] = json.loads(text or "{}").items()
    return {kind: BackendNote.model_validate(note) for kind, note in notes}
