"""LiteRT files that lie about offsets, sizes and indices: refused in one sentence, or read."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from tests.formats.litert_files import made

from haversack.core.errors import UserError
from haversack.formats.litert import read_litert
from haversack.models.graph.litert import load_litert


def refused(path: Path, content: bytes) -> UserError:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_litert(path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return caught.value


def test_truncated_at_any_byte_it_is_refused_or_whole(tmp_path: Path) -> None:
    whole = made()
    path = tmp_path / "a.tflite"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError):
            load_litert(path)


def test_changed_at_random_it_is_refused_or_read(tmp_path: Path) -> None:
    whole, draws, path, count = made(), random.Random(0), tmp_path / "a.tflite", 0
    for _ in range(1500):
        raw = bytearray(whole)
        for _ in range(draws.choice((1, 2, 8))):
            at = draws.randrange(len(raw) - 4)
            raw[at : at + 4] = struct.pack(
                "<i", draws.choice((0, -1, 2**31 - 1, 1 << 20, draws.randrange(4096)))
            )
        path.write_bytes(raw)
        try:
            load_litert(path)
        except UserError as error:
            assert "\n" not in str(error)
            count += 1
    assert count > 300


@pytest.mark.parametrize("root", [0, 3, 2**31, 2**32 - 1])
def test_a_root_outside_the_file_is_refused(root: int, tmp_path: Path) -> None:
    refused(tmp_path / "a.tflite", struct.pack("<I", root) + b"TFL3" + bytes(64))


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    assert "TFL3" in str(refused(tmp_path / "a.tflite", b"hello, world, this is text"))
    assert "TFL3" in str(refused(tmp_path / "a.tflite", b""))
    with pytest.raises(UserError, match="cannot be read"):
        read_litert(tmp_path / "absent.tflite")
    with pytest.raises(UserError, match="cannot be read"):
        read_litert(tmp_path)


@pytest.mark.parametrize(
    ("lie", "finding"),
    [
        ({"count": 5}, "bytes"),
        ({"scales": (0.0,)}, "above 0"),
        ({"scales": (0.1, 0.2, 0.3)}, "3 scales"),
        ({"input": 99}, "not there"),
        ({"weight_zero": 4}, "zero points"),
        ({"dtype": 7}, "type 7"),
        ({"outputs": 9}, "does not fit"),
        ({"batch": 4}, "shape"),
        ({"activation": 2}, "activation"),
    ],
)
def test_a_lie_is_named(lie: dict[str, object], finding: str, tmp_path: Path) -> None:
    assert finding in str(refused(tmp_path / "a.tflite", made(**lie)))  # type: ignore[arg-type]
