"""OFF meshes: read as ModelNet40 writes them, points even on the surface; damaged files refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.off import has_meshes, mesh_set, read_off, surface_points

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


def modelnet(root: Path, layout: str = "ModelNet") -> Path:
    """Two classes of ModelNet's layout (or `parts`, or `flat`): four meshes to learn from, two held out."""
    for name, height in (("chair", 1), ("sofa", 3)):
        for number in range(3):
            part = "test" if number == 2 else "train"
            folder = {"ModelNet": f"{name}/{part}", "parts": f"{part}/{name}", "flat": name}[layout]
            (root / folder).mkdir(parents=True, exist_ok=True)
            text = SQUARE.replace("1 1 0", f"1 1 {height + number}")
            (root / folder / f"{name}_{number:04d}.off").write_text(text)
    return root


@pytest.mark.parametrize("layout", ["ModelNet", "parts", "flat"])
def test_a_folder_of_meshes_is_a_set_of_clouds(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    root = modelnet(tmp_path / "ModelNet10", layout)
    found, left_out = mesh_set(root, 16)
    assert has_meshes(root) and not left_out
    assert found.classes == ("chair", "sofa") and found.shape == (16, 3)
    if layout == "flat":
        assert found.held_out is None and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    else:
        assert found.held_out.tolist() == [False] * 4 + [True] * 2 and found.labels.tolist() == [
            0,
            0,
            1,
            1,
            0,
            1,
        ]
    clouds = found.read(np.arange(6))
    assert clouds.dtype == np.float32 and np.linalg.norm(clouds, axis=2).max() == pytest.approx(1, abs=1e-6)
    again, _ = mesh_set(root, 16)
    assert np.array_equal(again.read(np.arange(6)), clouds)


def test_points_of_a_mesh_do_not_depend_on_others(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    root = modelnet(tmp_path / "m")
    before, _ = mesh_set(root, 16)
    (root / "chair" / "train" / "chair_0000.off").unlink()
    after, _ = mesh_set(root, 16)
    place = {key: number for number, key in enumerate(before.keys)}
    rows = np.array([place[key] for key in after.keys])
    assert np.array_equal(after.read(np.arange(5)), before.read(rows))


def test_broken_meshes_are_named_and_left_out_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    root = modelnet(tmp_path / "m")
    broken = root / "chair" / "train" / "chair_0001.off"
    broken.write_text(SQUARE[:-4])
    with pytest.raises(DamagedFileError, match=r"chair_0001\.off .*--skip-broken"):
        mesh_set(root, 16)
    for _ in range(2):
        found, left_out = mesh_set(root, 16, skip_broken=True)
        assert [name for name, _ in left_out] == [str(broken)] and len(found.labels) == 5
        assert len(found.keys) == 5 and not any("chair_0001" in key for key in found.keys)
    (root / "chair" / "train" / "chair_0000.off").write_text("OFF\n3 0 0\n0 0 0\n0 0 0\n0 0 0\n")
    with pytest.raises(UserError, match=r"the class chair of .* has no rows"):
        mesh_set(root, 16, skip_broken=True)
    with pytest.raises(UserError, match="no folder with meshes"):
        mesh_set(tmp_path / "cache", 16)
