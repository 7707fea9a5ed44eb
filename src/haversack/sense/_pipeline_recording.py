"""Recordings to play: an .npz file with frames and sound and, where it has them, their times.

`frames` u8 [n, side, side], `sound` f32 or i2 [m], `sound_rate`; `frame_times` f64 [n] in seconds (default:
even), `label` (default: none). Times give every frame its place, so a log with late or missing frames is
played as it was."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, UserError
from haversack.models.streams._record import Shape
from haversack.sense._pipeline_clock import FrameClock
from haversack.sense._pipeline_run import Units
from haversack.sense.pipeline import missed

MOST = 256 << 20
NEEDED = ("frames", "sound", "sound_rate")


@dataclass(frozen=True)
class Recording:
    """A window to play, its label where it is known, what is said about it."""

    units: Units
    label: str | None
    warnings: tuple[str, ...] = ()


def read_recording(path: Path, shape: Shape, *, late: str = "refuse") -> Recording:
    """Read and check a recording. Raises UserError for one that does not fit the model (shape, rates, too
    many missing frames, frames out of order where `late` is refuse), DamagedFileError for what is no
    recording."""
    arrays = _arrays(path)
    absent = [name for name in NEEDED if name not in arrays]
    if absent:
        raise DamagedFileError(path, f"it has no {absent[0]} (a recording has {', '.join(NEEDED)})")
    frames, sound = arrays["frames"], arrays["sound"]
    slow, fast = shape.senses
    if frames.ndim != 1 + len(slow.shape) or frames.shape[1:] != slow.shape or frames.dtype != np.uint8:
        raise UserError(
            f"{path} has frames {frames.dtype} {list(frames.shape)}; the model takes uint8 [n, "
            f"{', '.join(map(str, slow.shape))}].",
            field="frames",
            given=[str(frames.dtype), *frames.shape],
            nearest=["uint8", *slow.shape],
        )
    rate = float(np.ravel(arrays["sound_rate"])[0]) if arrays["sound_rate"].size else 0.0
    if rate != fast.rate:
        raise UserError(
            f"{path} has sound of {rate:g} samples a second and the model was trained on {fast.rate:g}; "
            "resample "
            "it.",
            field="sound_rate",
            given=rate,
            nearest=fast.rate,
        )
    if sound.dtype == np.int16:
        sound = sound.astype(np.float32) / np.float32(32768)
    if sound.ndim != 1 or sound.dtype != np.float32 or not np.isfinite(sound).all():
        raise DamagedFileError(path, "its sound is no row of numbers, f32 or int16")
    placed, missing, warnings = _placed(path, frames, arrays.get("frame_times"), shape, late)
    label = str(np.ravel(arrays["label"])[0]) if "label" in arrays and arrays["label"].size else None
    if label is not None and label not in shape.labels:
        raise UserError(
            f"{path} is labelled {label!r:.40}, which is none of the model's {len(shape.labels)} classes.",
            field="label",
            given=label[:40],
            nearest=shape.labels[0],
        )
    return Recording(Units(placed, sound[: fast.length], missing), label, warnings)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise UserError(f"there is no recording {path}.", field="replay", given=str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST:
                raise DamagedFileError(path, f"it holds more than {MOST >> 20} MiB")
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in (*NEEDED, "frame_times", "label") if name in found}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DamagedFileError(path, f"it is no .npz file of plain arrays ({error})") from error


def _placed(
    path: Path, frames: NDArray[np.uint8], times: NDArray[Any] | None, shape: Shape, late: str
) -> tuple[NDArray[np.uint8], tuple[int, ...], tuple[str, ...]]:
    """Frames in their places, numbers of the missing ones between them, warnings."""
    slow = shape.slow
    if times is None:
        return frames[: slow.length], (), ()
    if times.shape != (len(frames),) or not np.issubdtype(times.dtype, np.floating):
        raise DamagedFileError(path, f"it has {times.shape} frame_times for {len(frames)} frames")
    clock = FrameClock(slow, late)
    places = [clock.place(float(t)) for t in times]
    kept = {place: at for at, place in enumerate(places) if place is not None and place < slow.length}
    if not kept:
        raise DamagedFileError(path, "it has no frame")
    placed = np.zeros((max(kept) + 1, *slow.shape), np.uint8)
    for place, at in kept.items():
        placed[place] = frames[at]
    missing = tuple(place for place in range(len(placed)) if place not in kept)
    said = (missed(slow.name, len(missing), clock.dropped),) if missing or clock.dropped else ()
    return placed, missing, said


def write_recording(path: Path, units: Units, shape: Shape, label: str | None) -> int:
    """Write a recording; returns its bytes."""
    buffer = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {
        "frames": units.frames,
        "sound": units.sound,
        "sound_rate": np.array(shape.fast.rate),
    }
    if label is not None:
        arrays["label"] = np.array(label)
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())
    return len(buffer.getvalue())
