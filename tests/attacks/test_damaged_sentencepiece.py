"""SentencePiece files that lie: every cut, flipped bytes, fields of wrong types, sizes beyond the file."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError
from haversack.formats.sentencepiece import LARGEST, SentencePieceModel, fields, parse_model


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def part(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def piece(text: str, score: float, kind: int = 1) -> bytes:
    return part(1, part(1, text.encode()) + b"\x15" + struct.pack("<f", score) + whole(3, kind))


PIECES = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("▁a", -1) + piece("<0x00>", 0, 6)
MODEL = PIECES + part(2, whole(3, 2) + whole(35, 1) + whole(43, 2**64 - 1)) + part(3, whole(3, 0))


def test_what_it_says_is_read() -> None:
    model = parse_model(MODEL)
    assert (model.kind, model.byte_fallback, model.dummy_prefix, model.squeeze) == ("bpe", True, False, True)
    assert [one.kind for one in model.pieces] == ["unknown", "control", "normal", "byte"]
    assert model.pieces[2].text == "▁a" and model.pieces[2].score == -1
    assert parse_model(MODEL + whole(77, 3) + part(99, b"later")).pieces == model.pieces


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no pieces"),
        (whole(1, 3), "wire type 0"),
        (part(1, b""), "no text"),
        (part(1, part(1, b"\xff")), "not UTF-8"),
        (piece("a", float("nan")), "not finite"),
        (piece("a", 0, 9), "piece type 9"),
        (PIECES + part(2, whole(40, 4)), "unknown token 4"),
        (PIECES + part(2, whole(40, 2**64 - 1)), "unknown token -1"),
        (PIECES + part(2, whole(3, 17)), "model type 17"),
        (varint(1 << 3 | 2) + varint(2**62) + b"x", "a field of 4611686018427387904 bytes"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x0b\x00", "wire type 3"),
        (b"\x02\x00", "without a number"),
    ],
)
def test_lies_are_named(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_model(data)


def test_every_cut_is_refused_or_is_a_shorter_model() -> None:
    for end in range(len(MODEL)):
        try:
            model = parse_model(MODEL[:end])
        except ValueError:
            continue
        assert len(model.pieces) <= 4


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=200), at=st.integers(0, len(MODEL) - 1), flip=st.integers(1, 255))
def test_noise_is_refused_with_a_sentence(data: bytes, at: int, flip: int) -> None:
    flipped = MODEL[:at] + bytes([MODEL[at] ^ flip]) + MODEL[at + 1 :]
    for tried in (data, flipped, MODEL[:at] + data):
        try:
            parse_model(tried)
        except ValueError as error:
            assert str(error)


def test_a_long_file_is_refused_before_it_is_read(tmp_path) -> None:
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    begun = time.monotonic()
    with pytest.raises(DamagedFileError, match="larger than 64 MiB"):
        SentencePieceModel.open(path)
    assert time.monotonic() - begun < 1
    path.write_bytes(b"\x80" * 1000)
    with pytest.raises(DamagedFileError, match="no SentencePiece model"):
        SentencePieceModel.open(path)


def test_many_tiny_fields_are_read_one_by_one() -> None:
    count = sum(1 for _ in fields(whole(5, 0) * 200_000))
    assert count == 200_000
