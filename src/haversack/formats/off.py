"""OFF: the meshes of ModelNet40, and points drawn on their surface.

Format: the word OFF (ModelNet40 has files where the counts follow it on the same line), the numbers of
vertices, faces and edges, a line x y z for each vertex, a line `n i1 .. in` for each face (Princeton's Object
File Format). `#` begins a comment. Counts are checked against the file's size before anything is allocated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError

BYTES_MOST = 1 << 30
CORNERS_MOST = 1 << 12


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
