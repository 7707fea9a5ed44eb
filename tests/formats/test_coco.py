"""COCO's annotations and results: what is written comes back, what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.coco import Coco, CocoImage, read_coco, read_results, result_rows, write_coco

BOXES = np.array([[1, 2, 11, 22], [0, 0, 5, 5.5]], np.float32)
SET = Coco(
    ("cat", "cup"),
    (3, 90),
    (
        CocoImage(7, "a/1.jpg", 40, 30, BOXES, np.array([1, 0]), np.array([False, True])),
        CocoImage(9, "2.jpg", 10, 10, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)),
    ),
)


def test_it_comes_back(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", SET)
    again = read_coco(tmp_path / "a.json")
    assert again.classes == SET.classes and again.categories == SET.categories
    for one, other in zip(again.images, SET.images, strict=True):
        assert (one.id, one.file, one.width, one.height) == (other.id, other.file, other.width, other.height)
        assert (one.boxes == other.boxes).all() and (one.labels == other.labels).all()
        assert (one.crowd == other.crowd).all()


def test_categories_with_gaps_are_numbered_in_order(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", SET)
    raw = json.loads((tmp_path / "a.json").read_text())
    raw["categories"].reverse()
    (tmp_path / "a.json").write_text(json.dumps(raw))
    assert read_coco(tmp_path / "a.json").classes == ("cat", "cup")


def test_results_come_back_surest_first(tmp_path: Path) -> None:
    scores, labels = np.array([0.25, 0.5], np.float32), np.array([0, 1])
    rows = list(result_rows(7, SET.categories, BOXES, scores, labels))
    assert rows[0] == {"image_id": 7, "category_id": 3, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.25}
    (tmp_path / "r.json").write_text(json.dumps(rows))
    found = read_results(tmp_path / "r.json", SET)
    assert [len(one) for one in found] == [2, 0]
    assert found[0].scores.tolist() == [0.5, 0.25] and (found[0].boxes == BOXES[::-1]).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["annotations"][0].update(image_id=8),
        lambda raw: raw["annotations"][0].update(category_id=4),
        lambda raw: raw["annotations"][0].update(bbox=[0, 0, -1, 2]),
        lambda raw: raw["annotations"][0].update(bbox=[0, 0, float("nan"), 2]),
        lambda raw: raw["annotations"][0].update(bbox=[0, 0, 1]),
        lambda raw: raw["images"][0].update(file_name="../secret.jpg"),
        lambda raw: raw["images"][0].update(file_name="/etc/passwd"),
        lambda raw: raw["images"].append(dict(raw["images"][0])),
        lambda raw: raw["categories"].append({"id": 3, "name": "dog"}),
        lambda raw: raw.pop("categories"),
        lambda raw: raw["images"].append(7),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change) -> None:
    write_coco(tmp_path / "a.json", SET)
    raw = json.loads((tmp_path / "a.json").read_text())
    change(raw)
    (tmp_path / "a.json").write_text(json.dumps(raw))
    with pytest.raises(DamagedFileError):
        read_coco(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "[" * 100_000])
def test_what_is_no_file_of_these(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedFileError):
        read_coco(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_coco(tmp_path / "absent.json")
