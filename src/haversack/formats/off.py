"""OFF: the meshes of ModelNet40, and points drawn on their surface.

Format: the word OFF (ModelNet40 has files where the counts follow it on the same line), the numbers of
vertices, faces and edges, a line x y z for each vertex, a line `n i1 .. in` for each face (Princeton's Object
File Format). `#` begins a comment. Counts are checked against the file's size before anything is allocated.
A set is a folder a class, as ModelNet has it (CLASS/train/*.off and CLASS/test/*.off), in two parts
(train/CLASS/*.off and test/CLASS/*.off) or in one (CLASS/*.off).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from haversack.core._files import fingerprint
from haversack.core.errors import DamagedFileError, UserError
from haversack.formats._row_files import (
    HELD_OUT_NAMES,
    LabelledRows,
    Part,
    RowFile,
    folders,
    is_held_out,
    labelled_rows,
    laid_out,
)

BYTES_MOST = 1 << 30
CORNERS_MOST = 1 << 12
ENDING = ".off"


def read_off(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vertices f32 [n, 3] and triangles i64 [m, 3]; a face of more corners is cut into a fan.

    Raises UserError when the file cannot be read or is larger than 1 GiB, DamagedFileError when it is not
    OFF, ends early, has a vertex that is not finite or a face whose corner does not exist.
    """
    try:
        if path.stat().st_size > BYTES_MOST:
            raise UserError(f"{path} is larger than 1 GiB.", field="data", given=str(path))
        text = path.read_text(encoding="ascii", errors="strict")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="data", given=str(path)) from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, f"it is not plain text at byte {error.start}") from error
    lines = [line for line in (raw.partition("#")[0].strip() for raw in text.splitlines()) if line]
    if not lines or not lines[0].startswith("OFF"):
        raise DamagedFileError(path, "it does not begin with OFF")
    rest = lines[0][3:].strip()
    lines = [rest, *lines[1:]] if rest else lines[1:]
    counts = lines[0].split() if lines else []
    if len(counts) < 2 or not all(word.isdecimal() and len(word) < 10 for word in counts[:2]):
        raise DamagedFileError(path, "its counts of vertices and faces are not there")
    vertex_count, face_count = int(counts[0]), int(counts[1])
    if len(lines) < 1 + vertex_count + face_count:
        raise DamagedFileError(
            path, f"it has {len(lines) - 1} lines for {vertex_count} vertices and {face_count} faces"
        )
    try:
        with np.errstate(over="ignore"):
            vertices = np.array(
                [line.split()[:3] for line in lines[1 : 1 + vertex_count]], np.float32
            ).reshape(vertex_count, 3)
    except ValueError as error:
        raise DamagedFileError(path, "a vertex is not three numbers") from error
    if not np.isfinite(vertices).all():
        raise DamagedFileError(path, "a vertex is not finite")
    return vertices, _triangles(path, lines[1 + vertex_count :][:face_count], vertex_count)


def _triangles(path: Path, lines: list[str], vertex_count: int) -> NDArray[np.int64]:
    found: list[tuple[int, int, int]] = []
    for number, line in enumerate(lines):
        words = line.split()
        try:
            count = int(words[0])
            corners = [int(word) for word in words[1 : 1 + min(count, CORNERS_MOST)]]
        except ValueError as error:
            raise DamagedFileError(path, f"face {number} is not whole numbers") from error
        if not 3 <= count <= CORNERS_MOST or len(corners) != count:
            raise DamagedFileError(path, f"face {number} claims {count} corners and has {len(corners)}")
        if min(corners) < 0 or max(corners) >= vertex_count:
            raise DamagedFileError(path, f"face {number} has a corner outside 0..{vertex_count - 1}")
        found += [(corners[0], corners[i], corners[i + 1]) for i in range(1, count - 1)]
    return np.array(found, np.int64).reshape(-1, 3)


def surface_points(
    vertices: NDArray[np.float32], triangles: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.float32]:
    """f32 [count, 3]: points even over the surface, moved and scaled into the unit ball.

    Raises UserError for a mesh without area.
    """
    a, b, c = (vertices[triangles[:, corner]].astype(np.float64) for corner in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    if not len(triangles) or areas.sum() <= 0:
        raise UserError("the mesh has no area to draw points on.", field="data", given=len(triangles))
    generator = np.random.default_rng([seed, 0x0FF])
    at = generator.choice(len(triangles), count, p=areas / areas.sum())
    first, second = generator.random((2, count, 1))
    beyond = first + second > 1
    first, second = np.where(beyond, 1 - first, first), np.where(beyond, 1 - second, second)
    points = a[at] + first * (b[at] - a[at]) + second * (c[at] - a[at])
    points -= points.mean(axis=0)
    points /= max(float(np.linalg.norm(points, axis=1).max()), 1e-12)
    found: NDArray[np.float32] = points.astype(np.float32)
    return found


def has_meshes(path: Path) -> bool:
    """Whether the folder `path` has a mesh in it, at most three folders deep."""
    return any(next(path.glob(f"{'*/' * depth}*{ENDING}"), None) for depth in (1, 2, 3))


def mesh_set(
    path: Path,
    points: int,
    *,
    skip_broken: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[LabelledRows, tuple[tuple[str, str], ...]]:
    """The meshes in the folder `path` as clouds f32 [points, 3], drawn once and kept in the cache, and what
    was left out, with the reason. The points of a mesh follow from its name within the folder.

    Raises UserError for a folder without meshes, a class without any and one that only the held-out part
    has; DamagedFileError for a broken mesh, which `skip_broken` leaves out instead.
    """
    root = _root(path)
    classes, listed = _listed(root)
    left_out: list[tuple[str, str]] = []
    parts = []
    for held_out in (False, True):
        files = [(file, label) for file, label, side in listed if side == held_out]
        good = _drawn(root, files, points, skip_broken, left_out, progress, len(listed))
        if good is not None:
            parts.append(Part(good[0], good[1], held_out))
    found = labelled_rows(path, parts, classes)
    gone = {name for name, _ in left_out}
    kept = [
        file for side in (False, True) for file, _, each in listed if each == side and str(file) not in gone
    ]
    return replace(found, keys=tuple(file.relative_to(root).as_posix() for file in kept)), tuple(left_out)


def _root(path: Path) -> Path:
    """`path`, or the one folder in it that holds the classes."""
    inside = folders(path)
    deeper = next(path.glob(f"*/*/*{ENDING}"), None) or next(path.glob(f"*/*/*/*{ENDING}"), None)
    alone = len(inside) == 1 and deeper is not None and inside[0].name.lower() != "train"
    return inside[0] if alone and next(inside[0].glob(f"*{ENDING}"), None) is None else path


def _listed(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int, bool]]]:
    """The classes, and every mesh with its class and whether it is held out."""
    names = {folder.name.lower() for folder in folders(root)}
    if "train" in names and names <= {"train", *HELD_OUT_NAMES}:
        sides = [(part, is_held_out(part.name)) for part in folders(root)]
        found = [(folder, folder.name, side) for part, side in sides for folder in folders(part)]
    else:
        found = []
        for folder in folders(root):
            inner = [each for each in folders(folder) if each.name == "train" or is_held_out(each.name)]
            found += [(each, folder.name, is_held_out(each.name)) for each in inner]
            found += [] if inner else [(folder, folder.name, False)]
    classes = tuple(sorted({name for _, name, _ in found}))
    listed = [(file, classes.index(name), side) for folder, name, side in found for file in _meshes(folder)]
    if not listed:
        raise UserError(
            f"{root} has no folder with meshes in it; put the {ENDING} files of each class into a folder of "
            "its name.",
            field="data",
            given=str(root),
        )
    return classes, listed


def _drawn(
    root: Path,
    files: list[tuple[Path, int]],
    points: int,
    skip_broken: bool,
    left_out: list[tuple[str, str]],
    progress: Callable[[int], None] | None,
    total: int,
) -> tuple[RowFile, NDArray[np.int64]] | None:
    """The clouds of `files` one behind the other in a file of the cache, and their labels."""
    if not files:
        return None
    states = [(file, file.stat()) for file, _ in files]
    listed = "".join(f"{file} {state.st_size} {state.st_mtime_ns}\n" for file, state in states)
    good: list[int] = []

    def write(goal: BinaryIO) -> None:
        for number, (file, _) in enumerate(files):
            if progress is not None:
                progress(total)
            key = file.relative_to(root).as_posix()
            try:
                cloud = surface_points(*read_off(file), points, zlib.crc32(key.encode()))
            except UserError as error:
                what = error.what if isinstance(error, DamagedFileError) else str(error).rstrip(".")
                if not skip_broken:
                    raise DamagedFileError(
                        file, what, field="data", advice="Remove it, or use --skip-broken."
                    ) from error
                left_out.append((str(file), what))
                continue
            good.append(number)
            goal.write(cloud.astype("<f4").data)

    name = f"{fingerprint(listed)}-{zlib.crc32(listed.encode()):08x}-{points}.clouds"
    place = laid_out(root, name, write)
    nbytes = 12 * points
    if not good:
        # drawn by an earlier run: all of them, or some were left out and must be named again
        if place.stat().st_size != nbytes * len(files):
            place.unlink()
            return _drawn(root, files, points, skip_broken, left_out, progress, total)
        good = list(range(len(files)))
    labels = np.array([files[number][1] for number in good], np.int64)
    return RowFile(place, len(good), 0, nbytes, (points, 3), "<f4"), labels


def _meshes(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob(f"*{ENDING}") if each.is_file())
