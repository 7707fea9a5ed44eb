"""Speech with its transcripts in the layout of LibriSpeech: SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt.

A line of a transcript is an utterance's name, a blank and what was said; its sound lies beside it, as
NAME.flac, .wav or .ogg. Any folder with such files at any depth is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from haversack.core.errors import DamagedFileError, UserError

ENDINGS = (".flac", ".wav", ".ogg")
LARGEST = 64 << 20


@dataclass(frozen=True)
class Transcribed:
    """One utterance: its name, its speaker, its sound file and what was said."""

    name: str
    speaker: str
    sound: Path
    text: str


def read_librispeech(folder: str | Path) -> tuple[Transcribed, ...]:
    """All utterances of `folder`, sorted by name; sound is looked for and not read.

    Raises UserError where there is no transcript, where a line's sound is missing, and where an utterance
    says nothing (an error rate over no words is not defined); DamagedFileError for a transcript that is no
    text.
    """
    root = Path(folder)
    transcripts = sorted(root.rglob("*.trans.txt")) if root.is_dir() else []
    if not transcripts:
        raise UserError(
            f"{root} holds no transcript (NAME.trans.txt); give a folder in LibriSpeech's layout.",
            field="data",
            given=str(root),
        )
    found: dict[str, Transcribed] = {}
    for transcript in transcripts:
        for number, line in enumerate(_lines(transcript), 1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            if not text.strip():
                raise UserError(
                    f"{transcript}, line {number}: {name} says nothing, and errors are counted by words; "
                    "take the line out.",
                    field="data",
                    given=name,
                )
            if name in found:
                raise UserError(
                    f"{transcript}, line {number}: {name} is named twice; keep one of the lines.",
                    field="data",
                    given=name,
                )
            sounds = [transcript.with_name(name + ending) for ending in ENDINGS]
            sound = next((path for path in sounds if path.is_file()), None)
            if sound is None:
                raise UserError(
                    f"{transcript}, line {number}: there is no {sounds[0]} (nor {', '.join(ENDINGS[1:])}); "
                    "put the sound beside its transcript.",
                    field="data",
                    given=name,
                )
            found[name] = Transcribed(name, name.partition("-")[0], sound, text.strip())
    return tuple(found[name] for name in sorted(found))


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > LARGEST:
        raise DamagedFileError(path, f"a transcript is smaller than {LARGEST >> 20} MiB", field="data")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, "it is no UTF-8 text", field="data") from error
