"""Folders of pictures: classes, parts, odd modes, damage, archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats import pictures
from haversack.formats.pictures import fitted, read_folder, read_picture, unpacked

Image = pytest.importorskip("PIL.Image", reason="needs Pillow (pip install haversack[vision])")


def colours(height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def saved(path: Path, values: np.ndarray, mode: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    (picture if mode is None else picture.convert(mode)).save(path, **options)
    return path


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    values = colours()
    assert (read_picture(saved(tmp_path / "a.png", values), 6, 6) == values).all()


def test_the_middle_is_cut_out_and_scaled(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    assert (read_picture(saved(tmp_path / "a.png", wide), 8, 8) == 200).all()
    assert read_picture(tmp_path / "a.png", 16, 16).shape == (16, 16, 3)
    assert read_picture(tmp_path / "a.png", 4, 8, 1).shape == (4, 8, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F"])
def test_every_mode_becomes_rgb_and_grey(tmp_path: Path, mode: str) -> None:
    ending = "tiff" if mode in ("CMYK", "YCbCr", "I", "F") else "png"
    path = saved(tmp_path / f"a.{ending}", np.full((5, 5, 3), 255, np.uint8), mode)
    for channels in (3, 1):
        found = read_picture(path, 5, 5, channels)
        assert found.shape == (5, 5, channels) and (found >= 254).all()


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    assert read_picture(path, 2, 2, 1)[..., 0].tolist() == [[0, 100], [200, 255]]


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (read_picture(saved(tmp_path / "a.png", clear), 4, 4) == 255).all()


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 3), np.uint8)
    values[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    path = saved(tmp_path / "a.png", values, exif=exif)
    assert (read_picture(path, 4, 4)[3] == 255).all()


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    for ending, options in (("png", {}), ("jpg", {"quality": 90})):
        path = saved(tmp_path / f"a.{ending}", colours(40, 40), **options)
        data = path.read_bytes()
        for damaged in (data[: len(data) // 2], b"", b"GIF89a", b"\x00" * 100):
            path.write_bytes(damaged)
            with pytest.raises(DamagedFileError) as refusal:
                read_picture(path, 8, 8)
            assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PIXELS_MOST", 30)
    with pytest.raises(DamagedFileError, match="claims 6 x 6 pixels"):
        read_picture(saved(tmp_path / "a.png", colours()), 6, 6)


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png", "a/deep/3.JPG", ".hidden/1.png"):
        saved(tmp_path / name, colours())
    (tmp_path / "a" / "notes.txt").write_text("x")
    found = read_folder(tmp_path)
    assert found.classes == ("a", "b") and found.labels == (0, 0, 1) and found.held_out is None
    assert [found.key(index) for index in range(3)] == ["a/1.png", "a/deep/3.JPG", "b/2.png"]


def test_parts_are_told_by_their_names(tmp_path: Path) -> None:
    for name in ("set/train/a/1.png", "set/train/b/1.png", "set/val/a/2.png"):
        saved(tmp_path / name, colours())
    found = read_folder(tmp_path)
    assert found.classes == ("a", "b") and found.held_out == (False, False, True)
    saved(tmp_path / "set/val/c/1.png", colours())
    with pytest.raises(UserError, match="val has the class c, which train has not"):
        read_folder(tmp_path)


def test_classes_without_pictures_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder with pictures"):
        read_folder(tmp_path)
    saved(tmp_path / "a" / "1.png", colours())
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"the class b of .* has no pictures"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        read_folder(tmp_path / "none")


def test_a_packed_folder_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    saved(tmp_path / "x" / "a" / "1.png", colours())
    saved(tmp_path / "x" / "b" / "1.png", colours())
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "x", "x")
    assert read_folder(archive).classes == ("a", "b")
    assert unpacked(archive) == unpacked(archive)
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(DamagedFileError, match="no whole archive"):
        read_folder(archive)


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png"])
def test_an_archive_cannot_leave_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as packed:
        member = tarfile.TarInfo(name)
        member.size = 4
        packed.addfile(member, io.BytesIO(b"data"))
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    with pytest.raises(UserError):
        read_folder(archive)
    assert not list(tmp_path.glob("**/outside.png")) and not list((tmp_path / "cache").glob("unpacked/*"))


def test_a_zip_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    one = saved(tmp_path / "a.png", colours()).read_bytes()
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("set/cat/1.png", "set/dog/1.png", "__MACOSX/set/cat/._1.png"):
            packed.writestr(name, one)
    found = read_folder(tmp_path / "set.zip")
    assert found.classes == ("cat", "dog") and found.key(0) == "cat/1.png"
    whole = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 + 9 :])
    with pytest.raises(DamagedFileError, match="no whole archive"):
        unpacked(tmp_path / "cut.zip")


@pytest.mark.parametrize("name", ["../out/1.png", "/out/1.png", "a/../../out.png", "link"])
def test_a_zip_that_leaves_its_folder_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        member = zipfile.ZipInfo(name)
        if name == "link":
            member.external_attr = 0o120777 << 16
        packed.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="lies outside"):
        unpacked(tmp_path / "set.zip")
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_rows_of_pixels_are_fitted_as_files_are(tmp_path: Path) -> None:
    rows = np.stack([colours(8, 8), colours(8, 8)[::-1]])
    path = saved(tmp_path / "a.png", rows[1])
    assert fitted(rows, 8, 8) is rows
    for size, channels in ((16, 3), (5, 1)):
        assert np.array_equal(fitted(rows, size, size, channels)[1], read_picture(path, size, size, channels))
    grey = fitted(rows[..., :1], 4, 4)
    assert grey.shape == (2, 4, 4, 3) and (grey[..., 0] == grey[..., 2]).all()
