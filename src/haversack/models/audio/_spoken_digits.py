"""Strings of spoken digits: recordings of one speaker joined, from any copy of the Free Spoken Digit Dataset.

The set names its recordings DIGIT_SPEAKER_INDEX.wav (mono, 16 bit, 8 kHz) and holds out the indices 0 to 4 of
every digit and speaker: its README's official split. A string is 2 to 6 recordings of one speaker, drawn with
their digits, with 50 to 200 ms of silence between them, at 16 kHz. What is drawn depends on the seed, the
speaker's name and the names of the recordings alone: another copy of a speaker's recordings gives the same
strings, whoever else is in it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import wave
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from haversack.core.errors import DamagedFileError, UserError
from haversack.models.audio.resample import resample

F32 = np.ndarray[Any, np.dtype[np.float32]]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE = 16_000
TEST_INDICES = range(5)
MOST_SECONDS = 60.0
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Recording:
    """One spoken digit: `samples` f32 [n] between -1 and 1 at 16 kHz."""

    digit: int
    speaker: str
    index: int
    samples: F32

    @property
    def split(self) -> Split:
        """`test` for the indices 0 to 4, which are never trained on, calibrated with or tuned on."""
        return "test" if self.index in TEST_INDICES else "train"


@dataclass(frozen=True)
class Utterance:
    """What was said: `samples` f32 [n] at 16 kHz, and its words, separated by single blanks."""

    name: str
    speaker: str
    samples: F32
    text: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def read_recordings(path: str | Path) -> tuple[Recording, ...]:
    """All recordings of a folder, a tar or a zip archive, sorted by speaker, digit and index.

    Files of other names are passed over. Raises UserError where there is no such file or no recording in it,
    DamagedFileError for an archive or a recording that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"there are no recordings at {path}; give the folder or the archive of the spoken digits.",
            field="data",
            given=str(path),
        )
    found = []
    for name, content in _files(path):
        stem = Path(name).name.removesuffix(".wav").split("_")
        if len(stem) != 3 or not (stem[0].isdecimal() and stem[2].isdecimal()) or int(stem[0]) > 9:
            continue
        samples = _samples(content, name)
        found.append(Recording(int(stem[0]), stem[1], int(stem[2]), samples))
    if not found:
        raise UserError(
            f"{path} holds no recording named DIGIT_SPEAKER_INDEX.wav, such as 7_jackson_32.wav; give the "
            "folder or the archive of the spoken digits.",
            field="data",
            given=str(path),
        )
    return tuple(sorted(found, key=lambda one: (one.speaker, one.digit, one.index)))


def digit_strings(
    recordings: Sequence[Recording],
    split: Split,
    each_speaker: int,
    seed: int,
    *,
    digits: tuple[int, int] = (2, 6),
    gaps_ms: tuple[int, int] = (50, 200),
    longest_s: float = 5.0,
) -> tuple[Utterance, ...]:
    """`each_speaker` strings of every speaker, of recordings of `split` alone; the same for the same seed.

    A string that lasts longer than `longest_s` is drawn again. Raises UserError where a speaker has no
    recording in `split`, and where none of a hundred draws is short enough.
    """
    strings = []
    for speaker in sorted({one.speaker for one in recordings}):
        own = [one for one in recordings if one.speaker == speaker and one.split == split]
        if not own:
            raise UserError(
                f"the speaker {speaker} has no recording in the {split} split; give more recordings.",
                field="data",
                given=speaker,
            )
        name = int.from_bytes(hashlib.sha256(f"{speaker} {split}".encode()).digest()[:8], "little")
        generator = np.random.default_rng([seed, name])
        for number in range(each_speaker):
            samples, text = _draw(own, generator, digits, gaps_ms, longest_s)
            strings.append(Utterance(f"{speaker}-{split}-{seed}-{number}", speaker, samples, text))
    return tuple(strings)


def joined(parts: Sequence[F32], gaps_ms: Sequence[float]) -> F32:
    """`parts` one after the other, with `gaps_ms[i]` of silence after the i-th but the last."""
    pieces = [parts[0]]
    for gap, part in zip(gaps_ms, parts[1:], strict=True):
        pieces += [np.zeros(round(gap * RATE / 1000), np.float32), part]
    return np.concatenate(pieces)


def _draw(
    own: Sequence[Recording],
    generator: np.random.Generator,
    digits: tuple[int, int],
    gaps_ms: tuple[int, int],
    longest_s: float,
) -> tuple[F32, str]:
    for _ in range(100):
        count = int(generator.integers(digits[0], digits[1] + 1))
        drawn = [own[int(at)] for at in generator.integers(len(own), size=count)]
        gaps = generator.uniform(*gaps_ms, size=count - 1)
        samples = joined([one.samples for one in drawn], [float(gap) for gap in gaps])
        if len(samples) <= longest_s * RATE:
            return samples, " ".join(WORDS[one.digit] for one in drawn)
    raise UserError(
        f"no string of {digits[0]} to {digits[1]} digits of {own[0].speaker} is shorter than {longest_s:g} "
        "s; allow longer ones.",
        field="longest_s",
        given=longest_s,
    )


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The .wav files of a folder or an archive: name and content."""
    if path.is_dir():
        for file in sorted(path.rglob("*.wav")):
            yield file.name, file.read_bytes()
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if entry.filename.endswith(".wav"):
                        yield entry.filename, archive.read(entry)
            return
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".wav"):
                    packed = archive.extractfile(member)
                    assert packed is not None
                    yield member.name, packed.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DamagedFileError(path, f"it is no whole tar or zip archive ({error})", field="data") from error


def _samples(content: bytes, name: str) -> F32:
    """A mono recording of 16 bits at 16 kHz, whatever its rate was."""
    try:
        with wave.open(io.BytesIO(content)) as sound:
            shape = (sound.getnchannels(), sound.getsampwidth())
            rate, count = sound.getframerate(), sound.getnframes()
            frames = sound.readframes(count)
    except (wave.Error, EOFError) as error:
        raise DamagedFileError(name, f"it is no wav file ({error})", field="data") from error
    if shape != (1, 2) or len(frames) != 2 * count or not 0 < count <= MOST_SECONDS * rate:
        raise DamagedFileError(
            name, "it is not a whole mono recording of 16 bits and at most a minute", field="data"
        )
    return resample((np.frombuffer(frames, "<i2") / 32768).astype(np.float32), rate, RATE)
