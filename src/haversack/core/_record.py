"""pack.json: what a pack says of itself, as records, and its reading and writing with a checksum over every
byte."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import msgspec

from haversack.core._safetensors import DIMENSIONS_MOST, NAME_MOST
from haversack.core.errors import not_allowed

FORMAT = (1, 5)
PACK_KINDS = ("language", "speech", "vision", "signal", "delta", "mcu", "split", "codec")
RECORD_NAME = "pack.json"
WEIGHTS_NAME = "weights.safetensors"
STORE_NAME = "experts.store"
SEALED_NAME = "sealed.store"
"""In the place of the weights and experts where they are sealed (formats/sealed.py)."""
STORE_RECORDS = "store_records"
"""The field of a pack's provenance that says what a record of its store is, where it is no whole expert:
`parts`, the matrices of experts."""
PREDICTOR_NAME = "head-predictor.bin"
"""What says which rows of the output matrix matter, where a pack has it (run/_head_predictor.py)."""
RECORD_MOST = 64 * 2**20
PIECE = 2**20
"""Bytes under one checksum."""

# Bytes of one number; the packed kinds are counted by `nbytes_of`.
PLAIN_KINDS: dict[str, int] = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1, "i8": 1, "i32": 4}
SMALL_KINDS = {"int4": 4, "int3": 3, "int2": 2}
"""Bits of the kinds that have a scale for each row and group of columns."""
PACKED_KINDS = ("int8", *SMALL_KINDS)
DTYPE_OF_KIND = {
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "u8": "U8",
    "i8": "I8",
    "i32": "I32",
    "int8": "U8",
    "int4": "U8",
    "int3": "U8",
    "int2": "U8",
}

_SEAL = b'"crc32":"'
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
FAMILY_NAME_MOST = 200
CLASS_NAME_MOST = 500


class TensorEntry(msgspec.Struct, frozen=True, kw_only=False):
    """One tensor of a pack or a hub folder.

    `kind`: f32, f16, bf16, int8, int4, int3, int2, u8 or i32 (a hub folder may hold more, such as i64; no
    method reads those). `shape`: of the numbers, not of their packed bytes. `group`: weights under one scale
    (int4, int3, and int8 in groups), else None. `layout`: `rows-1` (row after row) or `rows16-1` (16 rows
    interleaved; docs/format.md). `file`: name beside pack.json or in the hub folder; `offset` and `nbytes`:
    where its bytes are in that file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    group: int | None
    layout: str
    file: str
    offset: int
    nbytes: int


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a pack: its `size` in bytes, the CRC-32 `head` of its first `start` bytes (a weights file's
    header; 0 and 0 for other files) and the CRC-32 of each MiB from there on."""

    size: int
    start: int
    head: int
    pieces: tuple[int, ...]


class FamilyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The family that a target or its draft belongs to: models that share an anchor (models/_family.py).

    `name` is what people call it; `anchor_sha256` is the hash of the anchor's tensors as the float checkpoint
    had them, however this pack stores them; `anchor_layers` counts the blocks of the anchor.
    """

    name: str
    anchor_sha256: str
    anchor_layers: int


class PartEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a base's tensor a delta's tensor replaces: `indices`, rising, of the dimension `axis`."""

    axis: int
    indices: tuple[int, ...]


class DeltaEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a delta changes and how it came about (train/_delta.py).

    `base_name` is what people call the base, `base_sha256` the hash of its tensors (train/_network.py,
    identity); `classes` names the outputs of the head; `new_head` says that the base's own head is replaced;
    `slots` has the choice of each slot of stage train, `seed` what they drew from; `parts` lists the tensors
    of which only a part is replaced.
    """

    base_name: str
    base_sha256: str
    classes: tuple[str, ...]
    new_head: bool
    slots: dict[str, str]
    seed: int
    parts: dict[str, PartEntry] = {}


class PackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What pack.json holds.

    `format`: [major, minor]; a reader takes every minor of its major. `kind`: one of PACK_KINDS.
    `architecture`, `plan` (slot -> method), `provenance` (where it came from), `measurements` (records of
    core/measurement.py) are the business of those who made the pack; `activations` is the activation type of
    the matrix products. `forms`: matrix -> how its parts, the tensors NAME.PART, make it up: `form` (its
    name), `shape` (as one matrix) and what the form asks for; run/_forms.py reads them. `family`: null
    where the model belongs to none. `delta`: null but in packs of that kind.
    """

    format: tuple[int, int]
    kind: str
    architecture: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    activations: str = "f32"
    provenance: dict[str, Any] = {}
    family: FamilyEntry | None = None
    delta: DeltaEntry | None = None
    measurements: list[dict[str, Any]] = []
    tensors: tuple[TensorEntry, ...]
    forms: dict[str, dict[str, Any]] = {}
    files: dict[str, FileEntry]
    crc32: str


def pack_schema() -> dict[str, Any]:
    """The JSON Schema of pack.json."""
    return msgspec.json.schema(PackRecord)


def encode_record(record: PackRecord) -> bytes:
    """pack.json's bytes, ending in their own CRC-32 (taken with eight zeros in its place)."""
    body = msgspec.json.encode(msgspec.structs.replace(record, crc32="0" * 8))
    text = msgspec.json.format(body, indent=1) if len(body) < 2**20 else body
    text = text.replace(b'"crc32": "', _SEAL) + b"\n"
    at = text.rindex(_SEAL) + len(_SEAL)
    return text[:at] + b"%08x" % zlib.crc32(text) + text[at + 8 :]


def decode_record(data: bytes) -> PackRecord:
    """The record of pack.json's bytes. Raises ValueError with the finding: size, seal, JSON, fields, version,
    entries."""
    if len(data) > RECORD_MOST:
        raise ValueError(f"it has {len(data)} bytes, more than the {RECORD_MOST} a pack needs")
    at = data.rfind(_SEAL) + len(_SEAL)
    if at < len(_SEAL) or len(data) < at + 8:
        raise ValueError("it does not end in its checksum, so it is truncated or no pack.json")
    if data[at : at + 8] != b"%08x" % zlib.crc32(data[:at] + b"0" * 8 + data[at + 8 :]):
        raise ValueError("its checksum does not match: it was altered or truncated")
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version[0] != FORMAT[0]:
            raise ValueError(
                f"it is of format {version[0]}.{version[1]} and this program reads {FORMAT[0]}.x; "
                f"use a {'newer' if version[0] > FORMAT[0] else 'older'} haversack"
            )
        record = msgspec.json.decode(data, type=PackRecord)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.MsgspecError as error:
        raise ValueError(f"it is no record of a pack ({error})") from error
    _check_record(record)
    return record


def nbytes_of(kind: str, shape: tuple[int, ...], group: int | None, layout: str) -> int:
    """Bytes that a tensor takes, padding included; docs/format.md explains them.

    Raises ValueError when kind, shape, group and layout do not belong together.
    """
    if kind in PLAIN_KINDS:
        if layout != "rows-1" or group is not None:
            raise ValueError(f"{kind} has the layout rows-1 and no group, not {layout} and {group}")
        return math.prod(shape) * PLAIN_KINDS[kind]
    if kind not in PACKED_KINDS:
        raise ValueError(f"the kind {kind} is unknown")
    if layout != "rows16-1" or len(shape) != 2:
        raise ValueError(f"{kind} has the layout rows16-1 and two dimensions, not {layout} and {len(shape)}")
    blocks, columns = -(-shape[0] // 16), shape[1]
    if kind == "int8" and group is not None:
        if group != 32:
            raise ValueError(f"int8 has one scale a row, or groups of 32, not {group}")
        return blocks * -(-columns // group) * (group * 16 + 32)
    if kind == "int8":
        return blocks * (-(-columns // 32) * 32 * 16 + 64)
    step = {"int4": 8, "int3": 32, "int2": 16}[kind]
    if group is None or group % step or not step <= group <= 4096:
        raise ValueError(f"{kind} has groups of a multiple of {step}, not {group}")
    return blocks * -(-columns // group) * (group * 2 * SMALL_KINDS[kind] + 32)


def plain_name(name: str) -> bool:
    """True for a file name that cannot leave its folder and is the same on every system."""
    return bool(_NAME.fullmatch(name)) and not name.endswith(".")


class _Version(msgspec.Struct):
    format: tuple[int, int]


def _check_record(record: PackRecord) -> None:
    if record.kind not in PACK_KINDS:
        raise ValueError(str(not_allowed("kind", record.kind, PACK_KINDS)).rstrip("."))
    for name, file in record.files.items():
        if not plain_name(name) or name == RECORD_NAME:
            raise ValueError(f"the file name {name[:80]!r} is not allowed in a pack")
        if not 0 <= file.start <= file.size or len(file.pieces) != -(-(file.size - file.start) // PIECE):
            raise ValueError(f"its checksums of {name} do not cover {file.size} bytes")
    if record.family is not None:
        check_family(record.family)
    if (record.delta is not None) != (record.kind == "delta"):
        raise ValueError(f"it is of kind {record.kind} and {'has a' if record.delta else 'has no'} delta")
    if record.delta is not None:
        _check_delta(record.delta, {entry.name: entry.shape for entry in record.tensors})
    seen: set[str] = set()
    for entry in record.tensors:
        shown = entry.name[:80]
        if entry.name in seen:
            raise ValueError(f"the tensor {shown} occurs twice")
        seen.add(entry.name)
        if not 1 <= len(entry.name) <= NAME_MOST:
            raise ValueError(f"the tensor name {shown!r} has {len(entry.name)} characters")
        if len(entry.shape) > DIMENSIONS_MOST or not all(0 <= size < 2**63 for size in entry.shape):
            raise ValueError(f"the tensor {shown} has an impossible shape")
        try:
            needed = nbytes_of(entry.kind, entry.shape, entry.group, entry.layout)
        except ValueError as error:
            raise ValueError(f"the tensor {shown}: {error}") from error
        if needed != entry.nbytes:
            raise ValueError(f"the tensor {shown} takes {needed} bytes and is said to have {entry.nbytes}")
        holder = record.files.get(entry.file)
        if holder is None:
            raise ValueError(f"the tensor {shown} is in {entry.file[:80]!r}, which is no file of this pack")
        if not holder.start <= entry.offset <= holder.size - entry.nbytes:
            raise ValueError(f"the tensor {shown} lies outside of {entry.file}")
    for name, form in record.forms.items():
        check_form_entry(name, form, seen)


def check_family(family: FamilyEntry) -> None:
    """Raises ValueError for a family without a name, a hash or an anchor."""
    if not 1 <= len(family.name) <= FAMILY_NAME_MOST or not family.name.isprintable():
        raise ValueError(f"the name of its family has not 1 to {FAMILY_NAME_MOST} printable characters")
    if not _SHA256.fullmatch(family.anchor_sha256):
        raise ValueError("the anchor_sha256 of its family is not 64 lower-case hexadecimal digits")
    if not 1 <= family.anchor_layers <= 4096:
        raise ValueError(f"its family has {family.anchor_layers} anchor_layers, not 1 to 4096")


def _check_delta(delta: DeltaEntry, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for text, what in ((delta.base_name, "base"), *((name, "classes") for name in delta.classes)):
        if not 1 <= len(text) <= CLASS_NAME_MOST or not text.isprintable():
            raise ValueError(f"a name of its {what} has not 1 to {CLASS_NAME_MOST} printable characters")
    if not _SHA256.fullmatch(delta.base_sha256):
        raise ValueError("the base_sha256 of its delta is not 64 lower-case hexadecimal digits")
    if len(set(delta.classes)) != len(delta.classes) or not delta.classes:
        raise ValueError("its classes are none, or one of them occurs twice")
    for name, part in delta.parts.items():
        shape = shapes.get(name)
        if shape is None or not 0 <= part.axis < len(shape) or len(part.indices) != shape[part.axis]:
            raise ValueError(f"the part of {name[:80]} does not fit its tensor")
        rising = all(one < other for one, other in pairwise(part.indices))
        if not rising or not all(0 <= index < 2**31 for index in part.indices):
            raise ValueError(f"the part of {name[:80]} has indices that do not rise")


def check_form_entry(name: str, form: Mapping[str, Any], tensors: Collection[str]) -> None:
    """Raises ValueError unless `form` names a form and a matrix's shape, and `name` is no tensor itself."""
    shown = name[:80]
    if name in tensors:
        raise ValueError(f"the matrix {shown} is a tensor and has a form too")
    if not isinstance(form.get("form"), str):
        raise ValueError(f"the form of {shown} has no name")
    shape = form.get("shape")
    sizes = shape if isinstance(shape, list | tuple) else ()
    whole = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool)]
    if len(sizes) != 2 or len(whole) != 2 or not all(0 < size < 2**31 for size in whole):
        raise ValueError(f"the form of {shown} has the shape {str(shape)[:80]}, which is no matrix's")
