"""Sound files that lie: headers that promise too much, cut and altered files, sizes beyond the file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.formats.test_wav import wav
from tests.run.speech import sound, write_speech

from haversack.cli import main
from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.wav import FLOAT, PCM, read_wav
from haversack.models.audio._sound import read_sound

WHOLE = wav(PCM, 16, 2, 16000, np.arange(800, dtype="<i2").tobytes())


def altered(at: int, data: bytes) -> bytes:
    return WHOLE[:at] + data + WHOLE[at + len(data) :]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"RIFF", "does not begin as a WAV file"),
        (WHOLE[:11], "does not begin"),
        (WHOLE[:20], "ends behind the file"),
        (WHOLE[:15], "ends before the description"),
        (WHOLE[:40], "ends before the samples"),
        (WHOLE[:-1], "are there"),
        (altered(40, struct.pack("<I", 0xFFFFFFF0)), "are there"),
        (altered(40, struct.pack("<I", 1599)), "its last sample is cut"),
        (altered(22, struct.pack("<H", 0)), "0 channels"),
        (altered(22, struct.pack("<H", 65535)), "65535 channels"),
        (altered(24, struct.pack("<I", 0)), "0 samples a second"),
        (altered(24, struct.pack("<I", 0xFFFFFFFF)), "4294967295 samples a second"),
        (altered(32, struct.pack("<H", 3)), "do not take 3 bytes"),
        (altered(16, struct.pack("<I", 4)), "4 bytes, not 16"),
        (altered(16, struct.pack("<I", 0x7FFFFFFF)), "ends behind the file"),
        (altered(12, b"JUNK"), "come before their description"),
        (b"RIFF\0\0\0\0WAVE" + b"JUNK\0\0\0\0" * 5000, "more than 4096 parts"),
        (wav(FLOAT, 32, 1, 16000, struct.pack("<2f", 0.0, float("nan"))), "not finite"),
        (wav(FLOAT, 64, 1, 16000, struct.pack("<d", 1e300)), "not finite"),
    ],
)
def test_a_file_that_contradicts_itself_is_damaged(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=said), np.errstate(over="ignore"):
        read_wav(path, 60.0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 60), st.binary(min_size=1, max_size=8), st.integers(0, len(WHOLE)))
def test_any_change_of_a_header_is_read_or_refused(at: int, data: bytes, length: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        path.write_bytes(altered(at, data)[: max(length, 12)])
        try:
            found, layout = read_wav(path, 60.0)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert len(found) == layout.frames and layout.frames * layout.frame_nbytes <= len(WHOLE)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.wav", b""),
        ("text.wav", b"this is no sound at all"),
        ("cut.flac", b"fLaC\0\0\0\x22" + bytes(20)),
        ("cut.ogg", b"OggS" + bytes(40)),
        ("cut.wav", WHOLE[:30]),
        ("blink.wav", wav(PCM, 16, 1, 16000, b"\1\0" * 100)),
    ],
)
def test_bad_sound_ends_the_command_with_a_sentence(
    name: str, data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_speech(tmp_path / "model", "moonshine")
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError):
        read_sound(path)
    assert main(["run", str(folder), "--audio", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and name in said.err


def test_damaged_flac(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="FLAC needs soundfile")
    path = tmp_path / "a.flac"
    soundfile.write(path, sound(1.0), 16000)
    assert np.abs(read_sound(path).samples - sound(1.0)).max() < 2**-14
    data = path.read_bytes()
    for length in (20, 60, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            read_sound(path)
