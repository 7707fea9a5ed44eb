"""Sets of pictures are read in their own layouts: folders of any depth, WebDataset shards, ADE20K."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.picture_sets import picture_files, samples, whole_picture


def file_of(value: int, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(out, kind)
    return out.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as packed:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_of_any_depth(tmp_path):
    for name in ("kodim02.png", "a/b/kodim01.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(file_of(7))
    assert [one.name for one in picture_files(tmp_path)] == ["kodim01.png", "kodim02.png"]
    found = list(samples(tmp_path))
    assert [one.key for one in found] == ["kodim01.png", "kodim02.png"]
    assert found[0].picture.shape == (6, 8, 3) and found[0].label is None
    with pytest.raises(UserError, match="no pictures"):
        picture_files(tmp_path / "a" / "b" / "c")


def test_webdataset_shards_join_members_by_key(tmp_path):
    shard(
        tmp_path / "train-0000.tar",
        [
            ("n01/000.cls", b"17"),
            ("n01/000.jpg", file_of(10, "JPEG")),
            ("n01/001.jpg", file_of(20, "JPEG")),
            ("n01/001.cls", b"3\n"),
            ("n01/001.json", b"{}"),
            ("readme.txt", b"no picture"),
        ],
    )
    shard(tmp_path / "train-0001.tar", [("x.png", file_of(30))])
    found = list(samples(tmp_path))
    assert [(one.key, one.label) for one in found] == [("n01/000", 17), ("n01/001", 3), ("x", None)]
    assert abs(int(found[1].picture.mean()) - 20) <= 1
    assert [one.key for one in samples(tmp_path / "train-0001.tar")] == ["x"]


def test_ade20k_has_its_maps_beside_it(tmp_path):
    for part in ("training", "validation"):
        for kind, name, data in (
            ("images", "1.jpg", file_of(50, "JPEG")),
            ("annotations", "1.png", file_of(5, mode="L")),
        ):
            (tmp_path / kind / part).mkdir(parents=True)
            (tmp_path / kind / part / name).write_bytes(data)
    (tmp_path / "annotations" / "training" / "1.png").write_bytes(file_of(0, mode="L"))
    found = list(samples(tmp_path))
    assert [one.key for one in found] == ["training/1.png", "validation/1.png"]
    assert found[0].map is not None and (found[0].map == 255).all()  # 0 is nothing
    assert found[1].map is not None and (found[1].map == 4).all()
    (tmp_path / "annotations" / "validation" / "1.png").write_bytes(file_of(5, mode="L", size=(4, 4)))
    with pytest.raises(DamagedFileError, match="map"):
        list(samples(tmp_path))


def test_damage_is_named(tmp_path):
    shard(tmp_path / "a.tar", [("k.jpg", file_of(1, "JPEG")[:40])])
    with pytest.raises(DamagedFileError, match=r"k\.jpg"):
        list(samples(tmp_path))
    shard(tmp_path / "a.tar", [("k.jpg", file_of(1, "JPEG")), ("k.cls", b"dog")])
    with pytest.raises(DamagedFileError, match="class"):
        list(samples(tmp_path))
    (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DamagedFileError, match="shard"):
        list(samples(tmp_path))
    with pytest.raises(DamagedFileError, match="no picture"):
        whole_picture(b"GIF89a but not really", "x")


def test_modes_become_rgb():
    for mode in ("L", "RGB"):
        assert whole_picture(file_of(9, mode=mode), "x").shape == (6, 8, 3)
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 5), 65535, np.uint16)).save(deep, "PNG")
    assert (whole_picture(deep.getvalue(), "x") == 255).all()
