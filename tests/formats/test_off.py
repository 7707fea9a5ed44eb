"""OFF meshes: read as ModelNet40 writes them, points even on the surface; damaged files refused."""

from __future__ import annotations

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.off import read_off, surface_points

SQUARE = "OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"


@pytest.mark.parametrize("text", [SQUARE, SQUARE.replace("OFF\n", "OFF"), "# made by hand\n" + SQUARE])
def test_a_square_is_two_triangles(text, tmp_path):
    (tmp_path / "a.off").write_text(text)
    vertices, triangles = read_off(tmp_path / "a.off")
    assert vertices.shape == (4, 3) and triangles.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_points_are_even_over_the_surface(tmp_path):
    (tmp_path / "a.off").write_text(
        "OFF\n6 2 0\n0 0 0\n3 0 0\n0 1 0\n0 0 5\n1 0 5\n0 1 5\n3 0 1 2\n3 3 4 5\n"
    )
    points = surface_points(*read_off(tmp_path / "a.off"), 20000, seed=1)
    assert points.shape == (20000, 3) and points.dtype == np.float32
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    assert np.abs(points.mean(axis=0)).max() < 0.02
    assert (points[:, 2] < points[:, 2].mean()).mean() == pytest.approx(0.75, abs=0.015)
    assert np.array_equal(points, surface_points(*read_off(tmp_path / "a.off"), 20000, seed=1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PLY\n",
        "OFF\n",
        "OFF\nfour 1 0\n",
        "OFF\n-1 1 0\n",
        "OFF\n999999999 999999999 0\n0 0 0\n",
        SQUARE.replace("4 0 1 2 3", "4 0 1 2 4"),
        SQUARE.replace("4 0 1 2 3", "4 0 1 2 -1"),
        SQUARE.replace("4 0 1 2 3", "4 0 1 2"),
        SQUARE.replace("4 0 1 2 3", "2 0 1"),
        SQUARE.replace("4 0 1 2 3", "x 0 1 2"),
        SQUARE.replace("1 1 0", "1 1"),
        SQUARE.replace("1 1 0", "1 nan 0"),
        SQUARE.replace("1 1 0", "1 1e99 0"),
        SQUARE.replace("1 1 0", "1 \xe9 0"),
    ],
)
def test_damaged_meshes_are_refused(text, tmp_path):
    (tmp_path / "a.off").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedFileError):
        read_off(tmp_path / "a.off")


def test_a_mesh_without_area(tmp_path):
    (tmp_path / "a.off").write_text("OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n")
    with pytest.raises(UserError, match="no area"):
        surface_points(*read_off(tmp_path / "a.off"), 10, seed=0)
    with pytest.raises(UserError, match="cannot be read"):
        read_off(tmp_path / "none.off")
