"""SentencePiece models (`tokenizer.model`, `spiece.model`), read with bounds and without a library.

A model is one protobuf message: pieces (text, score, type), how it was trained, how text is normalized. Only
the fields that encoding depends on are kept; unknown fields are skipped as the format asks. Field numbers are
those of sentencepiece_model.proto (Kudo and Richardson, 2018).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from haversack.core.errors import DamagedFileError, UserError

LARGEST = 64 * 2**20
PIECES_MOST = 2_000_000
MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
TYPES = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """One token: its text with U+2581 for spaces, its score, and one of TYPES."""

    text: str
    score: float
    kind: str


@dataclass(frozen=True)
class SentencePieceModel:
    """A model as far as encoding depends on it.

    `kind`: one of MODELS. `characters`: the compiled table of character replacements, empty for none.
    `dummy_prefix`: a space goes before every text. `squeeze`: spaces at the ends and double ones are dropped.
    `escape`: spaces become U+2581. `suffix`: spaces stand after words instead. Numbers of tokens that are
    absent are -1.
    """

    pieces: tuple[Piece, ...]
    kind: str = "unigram"
    byte_fallback: bool = False
    characters: bytes = b""
    dummy_prefix: bool = True
    squeeze: bool = True
    escape: bool = True
    suffix: bool = False
    unknown: int = 0
    start: int = 1
    end: int = 2

    @classmethod
    def open(cls, path: Path) -> SentencePieceModel:
        """Read a file. Raises UserError when it cannot be read, DamagedFileError when it is no such model."""
        try:
            if path.stat().st_size > LARGEST:
                raise DamagedFileError(path, f"it is larger than {LARGEST >> 20} MiB")
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}.", field="tokenizer", given=str(path)
            ) from error
        try:
            return parse_model(data)
        except ValueError as error:
            raise DamagedFileError(
                path,
                f"it is no SentencePiece model ({error})",
                field="tokenizer",
                advice="If it is of another kind (tiktoken), give the checkpoint's tokenizer.json.",
            ) from error


def parse_model(data: bytes) -> SentencePieceModel:
    """The model of a file's bytes. Raises ValueError with the finding."""
    pieces: list[Piece] = []
    trainer = normalizer = b""
    for number, kind, value in fields(data):
        if number == 1:
            if len(pieces) == PIECES_MOST:
                raise ValueError(f"more than {PIECES_MOST} pieces")
            pieces.append(_piece(_message(number, kind, value)))
        elif number == 2:
            trainer += _message(number, kind, value)  # parts of one message add up
        elif number == 3:
            normalizer += _message(number, kind, value)
    if not pieces:
        raise ValueError("it has no pieces")
    trained = _numbers(trainer)
    normal = _numbers(normalizer)
    characters = b""
    for number, kind, value in fields(normalizer):
        if number == 2:
            characters = _message(number, kind, value)
    model = trained.get(3, 1)
    if model not in MODELS:
        raise ValueError(f"its model type {model} is unknown")
    unknown = _signed(trained.get(40, 0))
    if not 0 <= unknown < len(pieces):
        raise ValueError(f"its unknown token {unknown} is none of its {len(pieces)} pieces")
    return SentencePieceModel(
        pieces=tuple(pieces),
        kind=MODELS[model],
        byte_fallback=bool(trained.get(35, 0)),
        characters=characters,
        dummy_prefix=bool(normal.get(3, 1)),
        squeeze=bool(normal.get(4, 1)),
        escape=bool(normal.get(5, 1)),
        suffix=bool(trained.get(24, 0)),
        unknown=unknown,
        start=_signed(trained.get(41, 1)),
        end=_signed(trained.get(42, 2)),
    )


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, value) of each field of a protobuf message: whole numbers for types 0, 1 and 5,
    bytes for 2. Raises ValueError where the bytes are no message."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"a field without a number before byte {at}")
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"the wire type {kind} before byte {at}")
        if size > end - at:
            raise ValueError(f"a field of {size} bytes at byte {at} of {end}")
        part = data[at : at + size]
        at += size
        yield number, kind, part if kind == _BYTES else int.from_bytes(part, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError(f"it ends inside a number, at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), at
    raise ValueError(f"a number of more than ten bytes before byte {at}")


def _message(number: int, kind: int, value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"field {number} has the wire type {kind}")
    return value


def _numbers(data: bytes) -> dict[int, int]:
    """The whole-number fields of a message; of one that occurs twice the last."""
    return {number: value for number, _, value in fields(data) if isinstance(value, int)}


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, wire, value in fields(data):
        if number == 1:
            try:
                text = _message(number, wire, value).decode()
            except UnicodeDecodeError as error:
                raise ValueError("a piece is not UTF-8") from error
        elif number == 2 and wire == _FIXED32 and isinstance(value, int):
            score = struct.unpack("<f", value.to_bytes(4, "little"))[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    if kind not in TYPES:
        raise ValueError(f"the piece type {kind} is unknown")
    if not text:
        raise ValueError("a piece has no text")
    if score != score or abs(score) == float("inf"):
        raise ValueError(f"the score of {text[:40]!r} is not finite")
    return Piece(text, score, TYPES[kind])
