"""A sound file as a speech model hears it: one channel at 16 kHz, and what was done to make it so."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, MissingExtraError, UserError
from haversack.formats.wav import check_length, is_wav, read_wav
from haversack.models.audio._record import RATE
from haversack.models.audio.resample import resample

F32 = npt.NDArray[np.float32]

LONGEST_S = 6 * 3600.0
SHORTEST_S = 0.02
LIBRARY = {b"fLaC": "FLAC", b"OggS": "Ogg"}
ENDINGS = (".wav", ".wave", ".flac", ".ogg", ".oga")


@dataclass(frozen=True)
class Sound:
    """`samples` f32 [n] at 16 kHz; `notes` say what was changed: a rate, channels that were mixed."""

    path: Path
    samples: F32
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / RATE


def read_sound(path: str | os.PathLike[str]) -> Sound:
    """The sound of a WAV file, or of a FLAC or Ogg file where soundfile is installed.

    Raises UserError for a file that cannot be read, is empty, too short or too long, or of another format;
    DamagedFileError for one that does not hold.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            beginning = file.read(12)
    except OSError as error:
        raise UserError(
            f"{source} cannot be read: {error.strerror}.", field="audio", given=str(source)
        ) from error
    if not beginning:
        raise UserError(f"{source} is empty.", field="audio", given=str(source))
    if is_wav(beginning):
        samples, layout = read_wav(source, LONGEST_S)
        return prepared(source, samples, layout.rate, layout.channels)
    if beginning[:4] in LIBRARY:
        return prepared(source, *_by_library(source, LIBRARY[beginning[:4]]))
    raise UserError(
        f"{source} is no WAV, FLAC or Ogg file; convert it to WAV.", field="audio", given=str(source)
    )


def prepared(path: Path, samples: F32, rate: int, channels: int) -> Sound:
    """Samples f32 [n], already averaged over `channels`, as sound at 16 kHz. Raises UserError for too few."""
    notes = []
    if channels > 1:
        notes.append(f"{channels} channels were averaged")
    if rate != RATE:
        notes.append(f"{rate} samples a second were resampled to {RATE}")
        samples = resample(samples, rate, RATE)
    if len(samples) < SHORTEST_S * RATE:
        raise UserError(
            f"{path} lasts {1000 * len(samples) / RATE:.0f} ms; at least {1000 * SHORTEST_S:.0f} ms are "
            "needed.",
            field="audio",
            given=len(samples) / RATE,
            nearest=SHORTEST_S,
        )
    return Sound(path, samples, tuple(notes))


def sound_files(folder: str | os.PathLike[str], purpose: str) -> list[Path]:
    """The sound files of a folder and the folders in it, by name. Raises UserError when there is none."""
    root = Path(folder)
    if root.is_file():
        return [root]
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        what = "holds no sound file (.wav, .flac, .ogg)" if root.is_dir() else "does not exist"
        raise UserError(f"{root} {what}.", field=purpose, given=str(root))
    return found


def _by_library(path: Path, named: str) -> tuple[F32, int, int]:
    """(samples, rate, channels) of a file that soundfile reads."""
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError(f"reading {named} files", "soundfile", "audio") from error
    try:
        with soundfile.SoundFile(path) as file:
            frames, rate, channels = int(file.frames), int(file.samplerate), int(file.channels)
            check_length(path, frames, rate, LONGEST_S)
            pieces: list[Any] = []
            for piece in file.blocks(1 << 16, dtype="float32", always_2d=True):
                pieces.append(piece.mean(axis=1))
    except soundfile.LibsndfileError as error:
        raise DamagedFileError(path, f"it cannot be decoded ({error.error_string.rstrip('.')})") from error
    samples = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    if len(samples) != frames:
        raise DamagedFileError(path, f"{frames} samples are promised and {len(samples)} are there")
    if not np.isfinite(samples).all():
        raise DamagedFileError(path, "it holds samples that are not finite")
    return samples.astype(np.float32), rate, channels
