"""Spoken digits: any copy of the set is read, strings depend on the seed alone, test recordings stay out."""

from __future__ import annotations

import io
import tarfile
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.models.audio._librispeech import read_librispeech
from haversack.models.audio._spoken_digits import RATE, WORDS, digit_strings, joined, read_recordings


def sound(digit: int, index: int, rate: int = 8000, seconds: float = 0.4, channels: int = 1) -> bytes:
    """A tone of its own for every digit, louder with the index."""
    time = np.arange(int(rate * seconds * channels)) / rate
    wanted = (2000 + 500 * index) * np.sin(2 * np.pi * (300 + 100 * digit) * time)
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(channels)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(wanted.astype("<i2").tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for speaker in ("ada", "bo"):
        for digit in range(10):
            for index in (0, 4, 5, 9):
                (folder / f"{digit}_{speaker}_{index}.wav").write_bytes(sound(digit, index))
    (folder / "read_me.wav").write_bytes(b"no recording: passed over by its name")
    return folder


def test_a_folder_and_archives_of_it_are_read_alike(recordings: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as packed:
        packed.add(recordings, "free-spoken-digit-dataset-1/recordings")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed_too:
        for path in recordings.iterdir():
            packed_too.write(path, f"recordings/{path.name}")
    plain = read_recordings(recordings)
    assert len(plain) == 80
    for copy in (tmp_path / "set.tar.xz", tmp_path / "set.zip"):
        again = read_recordings(copy)
        assert [(one.speaker, one.digit, one.index) for one in again] == [
            (one.speaker, one.digit, one.index) for one in plain
        ]
        assert all(np.array_equal(a.samples, b.samples) for a, b in zip(plain, again, strict=True))
    assert {one.split for one in plain if one.index < 5} == {"test"}
    assert {one.split for one in plain if one.index >= 5} == {"train"}


def test_recordings_come_out_at_16_khz_as_they_sounded(recordings: Path) -> None:
    one = next(one for one in read_recordings(recordings) if one.digit == 7)
    assert len(one.samples) == 2 * 3200
    spectrum = np.abs(np.fft.rfft(one.samples))
    assert spectrum.argmax() * RATE / len(one.samples) == pytest.approx(1000, abs=5)


def test_strings_depend_on_seed_and_speaker_alone(recordings: Path) -> None:
    everyone = read_recordings(recordings)
    strings = digit_strings(everyone, "test", 20, seed=3)
    again = digit_strings(everyone, "test", 20, seed=3)
    alone = digit_strings([one for one in everyone if one.speaker == "bo"], "test", 20, seed=3)
    assert [one.text for one in strings] == [one.text for one in again]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(strings, again, strict=True))
    assert [one.text for one in strings if one.speaker == "bo"] == [one.text for one in alone]
    other = digit_strings(everyone, "test", 20, seed=4)
    assert [one.text for one in strings] != [one.text for one in other]


def test_a_string_is_recordings_of_its_split_and_speaker_with_gaps(recordings: Path) -> None:
    everyone = read_recordings(recordings)
    for split in ("train", "test"):
        own = {
            (one.speaker, WORDS[one.digit]): {round(float(one.samples.max()), 4)}
            for one in everyone
            if one.split == split
        }
        for one in everyone:
            if one.split == split:
                own[one.speaker, WORDS[one.digit]].add(round(float(one.samples.max()), 4))
        for string in digit_strings(everyone, split, 15, seed=1):
            words = string.text.split()
            assert 2 <= len(words) <= 6
            assert string.seconds <= 5.0
            at = 0
            for place, word in enumerate(words):
                piece = string.samples[at : at + 6400]
                assert round(float(piece.max()), 4) in own[string.speaker, word]
                at += 6400
                if place < len(words) - 1:
                    gap = int(np.flatnonzero(string.samples[at:])[0])
                    assert 50 <= gap * 1000 / RATE <= 201
                    at += gap - int(piece[0] == 0)  # a tone that begins at zero looks like silence
            assert abs(len(string.samples) - at) <= len(words)


def test_strings_that_cannot_be_are_refused(recordings: Path) -> None:
    everyone = read_recordings(recordings)
    with pytest.raises(UserError, match=r"no recording in the test split"):
        digit_strings([one for one in everyone if one.split == "train"], "test", 1, seed=0)
    with pytest.raises(UserError, match=r"shorter than 0\.5 s"):
        digit_strings(everyone, "train", 1, seed=0, longest_s=0.5)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("7_ada_1.wav", b"", DamagedFileError),
        ("7_ada_1.wav", sound(7, 1)[:-100], DamagedFileError),
        ("7_ada_1.wav", sound(7, 1, channels=2), DamagedFileError),
        ("7_ada_1.wav", sound(7, 1, seconds=0.0), DamagedFileError),
        ("seven_ada_1.wav", sound(7, 1), UserError),
    ],
)
def test_damaged_recordings_are_refused(
    tmp_path: Path, name: str, content: bytes, error: type[UserError]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        read_recordings(tmp_path)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no recordings"):
        read_recordings(tmp_path / "absent")
    (tmp_path / "set.tar.xz").write_bytes(b"\xfd7zXZ\x00 and then nothing")
    with pytest.raises(DamagedFileError):
        read_recordings(tmp_path / "set.tar.xz")


def test_joining_counts_samples() -> None:
    one, two = np.ones(10, np.float32), np.full(5, 2, np.float32)
    assert joined([one, two], [1.0]).tolist() == [1.0] * 10 + [0.0] * 16 + [2.0] * 5


def test_the_set_at_hand(data: Callable[[str], Path]) -> None:
    recordings = read_recordings(data("audio/spoken-digits.tar.xz"))
    speakers = {one.speaker for one in recordings}
    assert len(speakers) >= 5
    assert len(recordings) == 500 * len(speakers)
    assert sum(one.split == "test" for one in recordings) == 50 * len(speakers)
    strings = digit_strings(recordings, "test", 4, seed=0)
    assert {one.speaker for one in strings} == speakers
    assert all(0 < np.abs(one.samples).max() <= 1.2 for one in strings)


def test_librispeech_layout(tmp_path: Path) -> None:
    chapter = tmp_path / "test-clean" / "61" / "70968"
    chapter.mkdir(parents=True)
    (chapter / "61-70968-0001.wav").write_bytes(sound(1, 5, rate=RATE))
    (chapter / "61-70968-0000.flac").write_bytes(b"fLaC")
    (chapter / "61-70968.trans.txt").write_text("61-70968-0001 HE WAS\n61-70968-0000 GIVE NOT SO EARNEST\n")
    first, second = read_librispeech(tmp_path)
    assert (first.name, first.speaker, first.text) == ("61-70968-0000", "61", "GIVE NOT SO EARNEST")
    assert first.sound.suffix == ".flac" and second.sound == chapter / "61-70968-0001.wav"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("61-70968-0009 NO SOUND", "there is no"),
        ("61-70968-0000", "says nothing"),
        ("61-70968-0000 ONE\n61-70968-0000 TWO", "named twice"),
    ],
)
def test_librispeech_mistakes_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "61-70968-0000.wav").write_bytes(sound(1, 5, rate=RATE))
    (tmp_path / "61-70968.trans.txt").write_text(line)
    with pytest.raises(UserError, match=said):
        read_librispeech(tmp_path)


def test_no_transcripts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no transcript"):
        read_librispeech(tmp_path)
    (tmp_path / "61-1.trans.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedFileError):
        read_librispeech(tmp_path)
