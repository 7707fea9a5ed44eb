"""Everything that a bundle is refused for, found by reading it whole.

Names, sizes and hashes first, then the tables, then the video beside its table, then every frame decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._tables import IMU_AXES, read_table
from haversack.collect._video import decoded, look
from haversack.collect.bundle import FILES, MANIFEST, Bundle, BundleError, Manifest, sha256_of
from haversack.core.errors import MissingExtraError

I64 = npt.NDArray[np.int64]
GAP_PERIODS = 3
OFF_NS = 1_000_000
"""A frame's time in the video may be off the table's by so much: video clocks tick less finely."""


@dataclass(frozen=True)
class Finding:
    """Why a bundle is refused: `code` for programs (json, schema-version, consent, manifest, name, size,
    hash, table, timestamps, gap, count, video, orientation), `what` for people."""

    code: str
    what: str


@dataclass
class Checked:
    """A bundle and what was found in it; `numbers` are measures of a whole one: seconds, frames, the longest
    gap, the largest share of frames missing in a second, whether the rate varies."""

    manifest: Manifest | None
    findings: list[Finding]
    numbers: dict[str, Any]


def check_bundle(path: Path, *, decode: bool = True) -> Checked:
    """Read a bundle whole. `decode` False leaves the pictures undecoded. Never raises for what is in the
    bundle."""
    try:
        bundle = Bundle.open(path)
    except BundleError as error:
        return Checked(None, [Finding(error.code, str(error))], {})
    findings: list[Finding] = []
    numbers: dict[str, Any] = {}
    for stranger in sorted(entry.name for entry in path.iterdir() if entry.name not in (*FILES, MANIFEST)):
        findings.append(Finding("name", f"{stranger[:80]!r} does not belong into a bundle."))
    findings += _files(bundle)
    if not findings:
        findings += _content(bundle, numbers, decode)
    return Checked(bundle.manifest, findings, numbers)


def _files(bundle: Bundle) -> list[Finding]:
    found = []
    for file in bundle.manifest.files:
        path = bundle.path / file.name
        if path.is_symlink() or not path.is_file():
            found.append(Finding("name", f"{file.name} is absent or no plain file."))
        elif path.stat().st_size != file.bytes:
            found.append(Finding("size", f"{file.name} has {path.stat().st_size} bytes, not {file.bytes}."))
        elif sha256_of(path) != file.sha256:
            found.append(Finding("hash", f"the SHA-256 of {file.name} is not the manifest's."))
    return found


def _content(bundle: Bundle, numbers: dict[str, Any], decode: bool) -> list[Finding]:
    manifest, path = bundle.manifest, bundle.path
    found: list[Finding] = []
    tables: dict[str, dict[str, Any]] = {}
    for name in FILES[1:]:
        try:
            tables[name] = read_table(path / name)
        except MissingExtraError:
            raise
        except BundleError as error:
            found.append(Finding(error.code, str(error)))
            continue
        times = tables[name]["t_ns"]
        if len(times) > 1 and not (np.diff(times) > 0).all():
            at = int(np.argmin(np.diff(times) > 0))
            found.append(Finding("timestamps", f"the times of {name} do not rise after row {at}."))
    if found:
        return found
    found += _sensors(tables)
    frames = tables["frames.parquet"]
    found += _times(manifest, frames, numbers)
    try:
        found += _video(manifest, path / "video.mp4", frames, decode)
    except BundleError as error:
        found.append(Finding(error.code, str(error)))
    return found


def _sensors(tables: dict[str, dict[str, Any]]) -> list[Finding]:
    found = []
    imu = tables["imu.parquet"]
    if not all(np.isfinite(imu[axis]).all() for axis in IMU_AXES):
        found.append(Finding("table", "imu.parquet holds numbers that are none."))
    edge = tables["edge.parquet"]
    measures = [edge[name] for name in ("a", "sharpness", "residual_px")]
    boxes = [
        (hand.x0, hand.y0, hand.x1, hand.y1, hand.score, hand.contact)
        for row in edge["hands"]
        for hand in row
    ]
    numbers = np.asarray(boxes, np.float64).reshape(-1, 6)
    if not all(np.isfinite(values).all() for values in (*measures, numbers)):
        found.append(Finding("table", "edge.parquet holds numbers that are none."))
    elif ((numbers < -1e-6) | (numbers > 1 + 1e-6)).any() or (numbers[:, :2] > numbers[:, 2:4]).any():
        found.append(Finding("table", "a hand's box in edge.parquet lies outside the picture."))
    return found


def _times(manifest: Manifest, frames: dict[str, Any], numbers: dict[str, Any]) -> list[Finding]:
    found = []
    times: I64 = frames["t_ns"]
    if len(times) != manifest.n_frames:
        said = f"frames.parquet has {len(times)} rows, the manifest says {manifest.n_frames}."
        found.append(Finding("count", said))
    if not len(times):
        return found
    if not frames["key"][0]:
        found.append(Finding("video", "the first frame is no key frame."))
    period = 1e9 / manifest.fps_nominal
    steps = np.diff(times).astype(np.float64)
    listed = set(manifest.gaps)
    for at in np.flatnonzero(steps > GAP_PERIODS * period):
        pair = (int(times[at]), int(times[at + 1]))
        if not any(begin <= pair[0] and pair[1] <= end for begin, end in listed):
            found.append(
                Finding(
                    "gap", f"{steps[at] / 1e9:.3f} s are missing after frame {at} and not listed in gaps."
                )
            )
            break
    numbers |= {
        "seconds": float((times[-1] - times[0] + period) / 1e9),
        "frames": len(times),
        "longest_gap_s": float(steps.max() / 1e9) if len(steps) else 0.0,
        "worst_drop_rate": worst_drop_rate(times, manifest.fps_nominal),
        "variable_rate": bool(len(steps) and np.ptp(steps) > 0.25 * period),
    }
    return found


def worst_drop_rate(times: I64, fps: float) -> float:
    """The largest share of frames that are missing in any second of a clip; 0 for shorter ones. `times`: ns,
    rising."""
    ends = np.searchsorted(times, times + 1_000_000_000)
    whole = times + 1_000_000_000 <= times[-1]
    if not whole.any():
        return 0.0
    there = (ends - np.arange(len(times)))[whole]
    return float(max(0.0, 1.0 - there.min() / max(1.0, np.floor(fps))))


def _video(manifest: Manifest, path: Path, frames: dict[str, Any], decode: bool) -> list[Finding]:
    found = []
    seen = look(path)
    times: I64 = frames["t_ns"]
    if (seen.width, seen.height) != (manifest.width, manifest.height):
        said = f"the video is {seen.width} x {seen.height}"
        said += f", the manifest says {manifest.width} x {manifest.height}."
        found.append(Finding("video", said))
    if len(seen.t_ns) != len(times):
        found.append(
            Finding("count", f"the video has {len(seen.t_ns)} frames, frames.parquet {len(times)} rows.")
        )
    elif np.abs((times - times[0]) - seen.t_ns).max() > OFF_NS:
        at = int(np.abs((times - times[0]) - seen.t_ns).argmax())
        found.append(
            Finding("timestamps", f"frame {at} has another time in the video than in frames.parquet.")
        )
    elif not np.array_equal(seen.key, frames["key"]):
        found.append(Finding("video", "key frames of the video are not those of frames.parquet."))
    if found or not decode:
        return found
    count = 0
    for frame in decoded(path):
        count += 1
        turned = -int(getattr(frame, "rotation", 0) or 0) % 360
        if turned not in (0, manifest.rotation):
            said = f"the video turns its pictures by {turned} degrees, the manifest by {manifest.rotation}."
            return [Finding("orientation", said)]
        if (frame.width, frame.height) != (manifest.width, manifest.height):
            return [Finding("video", f"frame {count - 1} is of another size than the first.")]
    if count != len(times):
        found.append(Finding("count", f"{count} frames could be decoded of {len(times)}."))
    return found
