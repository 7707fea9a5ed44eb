"""The segment bundle: one clip as it leaves a device, a folder of four files and their manifest.

Paper: AoE (arXiv 2602.23893). The paper's text was not available; the bundle's layout is [inferred] from its
abstract and from sibling systems, and fixed in docs/collect.md.

`DEVICE/SESSION/CLIP_UUID/` holds `video.mp4` (closed groups of pictures, a key frame first), `frames.parquet`
(when each frame was taken, in ns), `imu.parquet` (SI units), `edge.parquet` (what the device saw: hand boxes,
the trigger's evidence) and `manifest.json`. All times are of one monotonic clock; the manifest anchors it to
the wall clock. The names are a closed list, so that no manifest reaches another path, and every number in
it is bounded before anything is allocated for it.

What we changed: the device has an `id`, which the upload's token is bound to. `gaps` lists pauses of the
camera that are known.

Limits: a clip is at most 150 s and 4096 x 2304 pixels; tables are read whole.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from haversack.core.errors import UserError

SYSTEM = 1
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
FILES = ("video.mp4", "frames.parquet", "imu.parquet", "edge.parquet")
MANIFEST_MOST = 256 * 1024
FILE_MOST = 2**31
PIXELS_MOST, SIDE_MOST = 4096 * 2304, 8192
SECONDS_MOST, FPS_MOST = 150, 240
FRAMES_MOST = SECONDS_MOST * FPS_MOST
GAPS_MOST = 1000
ROTATIONS = (0, 90, 180, 270)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BundleError(UserError):
    """A bundle that is refused; `code` is the kind of the reason, for programs."""

    def __init__(self, code: str, sentence: str, given: Any = None) -> None:
        super().__init__(sentence, field=code, given=given)
        self.code = code


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class DeviceRecord(_Record, frozen=True):
    """Where a clip was taken. `id`: what the upload's token is bound to; `lens_id`: of its cameras."""

    id: str
    model: str
    os: str
    lens_id: str


class Trigger(_Record, frozen=True, omit_defaults=True):
    """Why the clip was kept, under which thresholds, and what the trigger asked for: from, to in ns of the
    frames' clock. The video begins with the key frame before it."""

    reason: str
    thresholds: dict[str, float]
    span: tuple[int, int] | None = None


class Consent(_Record, frozen=True):
    """Who agreed, to which text, and for how many days the clip may be kept."""

    contributor_pseudonym: str
    policy_version: str
    retention_days: int


class Privacy(_Record, frozen=True):
    """What was done to the pixels before they were stored."""

    faces_blurred: bool


class FileRecord(_Record, frozen=True):
    """One file beside the manifest."""

    name: str
    bytes: int
    sha256: str


class Manifest(_Record, frozen=True):
    """`manifest.json`. `t0_wall_ns`: the wall clock when the monotonic clock showed the first frame's time;
    `clock_offset_ns`: what the IMU's clock is ahead of the camera's; `rotation`: degrees clockwise that bring
    the picture upright; `gaps`: pauses of the camera as (from, to) in ns."""

    schema_version: int
    clip_uuid: str
    device: DeviceRecord
    session: str
    t0_wall_ns: int
    clock_offset_ns: int
    fps_nominal: float
    width: int
    height: int
    rotation: int
    n_frames: int
    trigger: Trigger
    consent: Consent
    privacy: Privacy
    files: tuple[FileRecord, ...]
    gaps: tuple[tuple[int, int], ...] = ()

    @property
    def folder(self) -> Path:
        """The bundle's place under a spool or a store."""
        return Path(self.device.id, self.session, self.clip_uuid)

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(file.bytes for file in self.files)

    def file(self, name: str) -> FileRecord:
        """The record of one of FILES."""
        return next(file for file in self.files if file.name == name)

    def encode(self) -> bytes:
        """As it stands in `manifest.json`: the same manifest is always the same bytes."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=1) + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in `data`, every field checked. Raises BundleError: `json`, `schema-version`, `consent`,
    `manifest`, `name`, `size` or `timestamps`.

    Consent comes first of what is judged: without it nothing else of a clip matters.
    """
    if len(data) > MANIFEST_MOST:
        raise BundleError("size", f"the manifest has {len(data)} bytes and may have {MANIFEST_MOST}.")
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError("json", f"the manifest is not JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise BundleError("json", "the manifest is no JSON object.")
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleError(
            "schema-version",
            f"schema_version={str(version)[:40]} is not known (allowed {SCHEMA_VERSION}); update haversack.",
            version if isinstance(version, int) else None,
        )
    check_consent(raw.get("consent"))
    try:
        manifest = msgspec.convert(raw, Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError("manifest", f"the manifest does not hold: {error}.") from error
    _check(manifest)
    return manifest


def check_consent(raw: Any) -> None:
    """Raises BundleError (`consent`) unless `raw` names who agreed, to what, and for how long."""
    advice = "; a clip needs the consent of who wears the device."
    if not isinstance(raw, dict):
        raise BundleError("consent", f"the manifest has no consent{advice}")
    for name in ("contributor_pseudonym", "policy_version"):
        value = raw.get(name)
        if not isinstance(value, str) or not _NAME.fullmatch(value.replace(".", "-")):
            raise BundleError("consent", f"consent.{name} is missing or no name{advice}")
    days = raw.get("retention_days")
    if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= 36_500:
        raise BundleError("consent", f"consent.retention_days is not 1 to 36500{advice}")


def _check(manifest: Manifest) -> None:
    for field, name in (("device.id", manifest.device.id), ("session", manifest.session)):
        if not _NAME.fullmatch(name):
            raise BundleError(
                "name",
                f"{field}={name[:80]!r} is no name (allowed: letters, digits, - and _, at most 64).",
                name[:80],
            )
    if not _canonical(manifest.clip_uuid):
        raise BundleError("name", f"clip_uuid={manifest.clip_uuid[:80]!r} is no UUID in lower case.")
    for field, text in (("model", manifest.device.model), ("os", manifest.device.os)):
        if len(text) > 200 or not text.isprintable():
            raise BundleError("manifest", f"device.{field} is longer than 200 characters or not printable.")
    names = [file.name for file in manifest.files]
    if sorted(names) != sorted(FILES):
        raise BundleError(
            "name", f"files are {', '.join(map(repr, names))[:300]}; a bundle has {', '.join(FILES)}."
        )
    for file in manifest.files:
        if not 0 < file.bytes <= FILE_MOST:
            raise BundleError("size", f"{file.name} says {file.bytes} bytes (allowed 1 to {FILE_MOST}).")
        if not _SHA256.fullmatch(file.sha256):
            raise BundleError("hash", f"the sha256 of {file.name} is not 64 digits of lower-case hex.")
    fps = manifest.fps_nominal
    if not (math.isfinite(fps) and 0 < fps <= FPS_MOST):
        raise BundleError("manifest", f"fps_nominal={fps} is not supported (allowed 0 to {FPS_MOST}).", fps)
    sides = (manifest.width, manifest.height)
    if min(sides) < 16 or max(sides) > SIDE_MOST or sides[0] * sides[1] > PIXELS_MOST:
        raise BundleError(
            "size", f"{sides[0]} x {sides[1]} pixels are not supported (allowed 16 to 4096 x 2304)."
        )
    if manifest.rotation not in ROTATIONS:
        raise BundleError("manifest", f"rotation={manifest.rotation} is not one of {ROTATIONS}.")
    if not 1 <= manifest.n_frames <= FRAMES_MOST:
        raise BundleError(
            "size", f"n_frames={manifest.n_frames} is not supported (allowed 1 to {FRAMES_MOST})."
        )
    if len(manifest.gaps) > GAPS_MOST or any(begin >= end for begin, end in manifest.gaps):
        raise BundleError("timestamps", "gaps are not pairs (from, to) in ns with from below to.")


def _canonical(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle on the disk whose manifest holds; its files are not read yet (see collect/_findings.py)."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read the manifest. Raises BundleError for a folder that is none, or a manifest that does not
        hold."""
        place = path / MANIFEST
        if not path.is_dir() or place.is_symlink() or not place.is_file():
            raise BundleError(
                "name", f"{path} is no bundle: it has no {MANIFEST}; give the folder of a clip.", str(path)
            )
        with place.open("rb") as file:
            manifest = parse_manifest(file.read(MANIFEST_MOST + 1))
        return cls(path, manifest)

    def sizes_differ(self) -> list[str]:
        """Files that are absent, no plain files, or not as long as the manifest says."""
        found = []
        for file in self.manifest.files:
            path = self.path / file.name
            if path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
                found.append(file.name)
        return found


def bundles_in(root: Path) -> list[Path]:
    """The folders of all finished bundles under a spool or store, in order of their names."""
    return sorted(path.parent for path in root.glob(f"*/*/*/{MANIFEST}") if ".partial-" not in str(path))
