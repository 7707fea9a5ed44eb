"""WAV files: what is written is read, every width of sample, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.wav import EXTENSIBLE, FLOAT, PCM, SUBFORMAT, read_wav, write_wav

LONGEST_S = 60.0


def wav(
    coding: int,
    bits: int,
    channels: int,
    rate: int,
    data: bytes,
    *,
    extensible: bool = False,
    extra: bytes = b"",
) -> bytes:
    """A WAV file of samples that are bytes already; `extra`: parts before them."""
    align = channels * bits // 8
    form = struct.pack(
        "<HHIIHH", EXTENSIBLE if extensible else coding, channels, rate, rate * align, align, bits
    )
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, coding) + SUBFORMAT
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + extra
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encode(samples: np.ndarray, coding: int, bits: int) -> bytes:
    if coding == FLOAT:
        return samples.astype("<f4" if bits == 32 else "<f8").tobytes()
    if bits == 8:
        return (np.rint(samples * 127) + 128).astype(np.uint8).tobytes()
    whole = np.rint(samples * (2 ** (bits - 1) - 1)).astype("<i8")
    return whole.view(np.uint8).reshape(-1, 8)[:, : bits // 8].tobytes()


@pytest.mark.parametrize(
    ("coding", "bits"), [(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)]
)
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("extensible", [False, True])
def test_every_width(coding: int, bits: int, channels: int, extensible: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    samples = rng.uniform(-0.9, 0.9, (700, channels))
    path = tmp_path / "a.wav"
    extra = b"LIST" + struct.pack("<I", 3) + b"odd\0"  # parts of odd length are followed by a byte
    path.write_bytes(
        wav(
            coding,
            bits,
            channels,
            8000,
            encode(samples.reshape(-1), coding, bits),
            extensible=extensible,
            extra=extra,
        )
    )
    found, layout = read_wav(path, LONGEST_S)
    assert (layout.channels, layout.rate, layout.bits) == (channels, 8000, bits)
    assert found.shape == (700,) and found.dtype == np.float32
    assert np.abs(found - samples.mean(axis=1)).max() < (0.02 if bits == 8 else 1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50), st.integers(100, 768_000))
def test_what_is_written_is_read(samples: list[float], rate: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        write_wav(path, np.float32(samples), rate)
        found, layout = read_wav(path, 1e9)
    assert layout.rate == rate and np.abs(found - np.float32(samples)).max() <= 2**-15


def test_a_size_that_was_never_filled_in_is_the_rest(tmp_path: Path) -> None:
    data = bytearray(wav(PCM, 16, 1, 16000, b"\1\0" * 50))
    data[40:44] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_wav(tmp_path / "a.wav", LONGEST_S)[0]) == 50


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (wav(PCM, 16, 1, 16000, b""), "empty"),
        (wav(6, 8, 1, 8000, b"abc"), "A-law"),
        (wav(0x55, 16, 1, 8000, b"abcd"), "MP3"),
        (wav(PCM, 12, 1, 8000, b"abc"), "12 bits"),
        (wav(PCM, 8, 1, 100, b"a" * 7000), "lasts 70 s"),
    ],
)
def test_what_is_not_read_says_why(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said) as caught:
        read_wav(path, LONGEST_S)
    assert not isinstance(caught.value, DamagedFileError) and caught.value.field == "audio"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_wav(tmp_path / "none.wav", LONGEST_S)
