"""`haversack share split` with a published detector as its teacher: a narrow checkpoint in the public
format, from training to a device that is answered; and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cli.said import refused, said

from haversack.bench.slimmable_split_encoders._checkpoints import drawn, faster_rcnn_shapes
from haversack.core.pack import Pack
from haversack.formats.coco import Coco, CocoImage, write_coco
from haversack.formats.safetensors import write_safetensors
from haversack.models.vision.slimmable import payload_bytes
from haversack.share._split_data import made
from haversack.share._split_frame import HEAD_BYTES
from haversack.share._split_halves import SlimEncoder, SplitServer
from haversack.share._split_pack import open_split

SIDE = 128
CUT = "slimmable:members=2,steps=3,rows=2,copies=2"
CLASSES = ("person", "dog", "kite")
NUMBERS = (1, 4, 6)


def checkpoint() -> dict[str, np.ndarray]:
    """With six classes besides the background: numbers 1, 4 and 6 are those of the annotations."""
    return drawn(faster_rcnn_shapes(16, 4, (1, 1, 1, 1), 8, 16, 7), 5)


def as_torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(each) for name, each in tensors.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with annotations, and the checkpoint as .pth and as safetensors."""
    from PIL import Image

    place = tmp_path_factory.mktemp("published")
    shown = made(20, 4)
    images = []
    for at, (picture, truth) in enumerate(zip(shown.pictures, shown.truth, strict=True)):
        Image.fromarray(picture).save(place / f"{at}.png")
        images.append(
            CocoImage(
                at, f"{at}.png", 96, 96, truth.boxes, truth.labels % 3, np.zeros(len(truth.labels), bool)
            )
        )
    write_coco(place / "t.json", Coco(CLASSES, NUMBERS, tuple(images)))
    torch.save({"model": as_torch(checkpoint()), "epoch": 3}, place / "detector.pth")
    write_safetensors(
        place / "detector.safetensors",
        ((name, "f32", each.shape, each.tobytes()) for name, each in checkpoint().items()),
    )
    return place


@pytest.fixture(scope="module")
def pack(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import contextlib
    import io

    from haversack.cli import main

    goal = tmp_path_factory.mktemp("packs") / "published.pack"
    line = ["share", "split", "train", "-o", goal, "--teacher", folder / "detector.pth", "--data", folder]
    line += ["--annotations", folder / "t.json", "--side", SIDE, "--cut", CUT, "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main([str(word) for word in line]) in (0, None)
    record = json.loads(told.getvalue())
    assert record["classes"] == list(CLASSES) and record["metric"] == "mAP@0.5"
    assert np.shape(record["quality"]) == (2, 4)
    return goal


@pytest.fixture(scope="module")
def server(pack: Path) -> Iterator[str]:
    program = "import sys; from haversack.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", program, "share", "split", "serve", pack, "--port", "0", "--json"]
    line += ["--least", "0.05"]
    started = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    text = ""
    while "}" not in text:
        text += started.stdout.readline()
    yield json.loads(text)["url"]
    started.terminate()
    assert started.wait(15) in (0, 143)


def test_the_pack_holds_the_detector(pack: Path, capsys: Any) -> None:
    record = open_split(pack)[1]
    assert record.detector is not None and record.detector.family == "faster-rcnn"
    assert record.detector.columns == NUMBERS, "the outputs of the categories' numbers"
    assert said(capsys, "check", pack)["whole"] is True
    files = Pack.open(pack).record.files
    assert {"server.onnx", "regions.onnx", "device.onnx", "member-2.onnx"} <= set(files)


def test_a_device_is_answered_with_detections(server: str, pack: Path, folder: Path, capsys: Any) -> None:
    record = said(
        capsys,
        *("share", "split", "run", pack, folder / "3.png", "--server", server, "--deadline-ms", 60_000),
        *("--mode", 24),
        schema="share-split-run",
    )
    assert (record["frames"], record["hits"]) == (1, 1)
    assert record["uplink_bytes"] == payload_bytes(4, SIDE) + HEAD_BYTES == 6 * 32 * 32 // 2 + HEAD_BYTES
    found = record["shots"][0]["answer"]["detections"]
    assert found and {one["label"] for one in found} <= set(CLASSES)
    for one in found:
        x0, y0, x1, y1 = one["box"]
        assert 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE and one["score"] >= 0.05
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)


def test_the_device_s_half_is_small_and_gives_the_same_cells(
    pack: Path, folder: Path, capsys: Any, tmp_path: Path
) -> None:
    half = tmp_path / "device.pack"
    sizes = said(capsys, "share", "split", "halve", pack, "-o", half, schema="share-split-halve")
    assert sizes["device_bytes"] < sizes["whole_bytes"] / 2
    assert open_split(half)[1].detector is None
    assert said(capsys, "check", half)["whole"] is True
    picture = made(1, 9).pictures[0]
    shown = np.pad(picture, ((0, 32), (0, 32), (0, 0)))
    one, other = SlimEncoder(pack), SlimEncoder(half)
    one.set_mode(2, 3), other.set_mode(2, 3)
    data = one.encode(shown)
    assert data == other.encode(shown)
    frame, answer = SplitServer(pack, least=0.05).decode(data)
    assert (frame.k, frame.b) == (2, 3) and answer["detections"]


def test_other_pictures_are_judged_and_the_teacher_is_taken_again(
    pack: Path, folder: Path, capsys: Any, tmp_path: Path
) -> None:
    judged = said(
        capsys,
        *("share", "split", "evaluate", pack, "--data", folder, "--annotations", folder / "t.json"),
        schema="share-split-evaluate",
    )
    assert [one["mode"] for one in judged["modes"]] == [11, 12, 13, 14, 21, 22, 23, 24]
    again = tmp_path / "again.pack"
    said(
        capsys,
        *("share", "split", "train", "-o", again, "--teacher", pack, "--data", folder, "--side", SIDE),
        *("--annotations", folder / "t.json", "--cut", CUT.replace("members=2", "members=1")),
        schema="share-split-train",
    )
    assert open_split(again)[1].detector == open_split(pack)[1].detector


class Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import pathlib; pathlib.Path('harmed').write_text('')",)


def test_checkpoints_that_are_refused(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    whole = checkpoint()

    def told(tensors: Any, side: int = SIDE, name: str = "x.pth") -> dict[str, Any]:
        if isinstance(tensors, bytes):
            (tmp_path / name).write_bytes(tensors)
        else:
            torch.save(tensors, tmp_path / name)
        line = ("share", "split", "train", "-o", "o.pack", "--data", folder, "--side", side, "--cut", CUT)
        return refused(capsys, *line, "--annotations", folder / "t.json", "--teacher", tmp_path / name)

    harm = told({"model": Harm()})
    assert "refused" in harm["error"] and harm["field"] == "teacher"
    assert "refused" in told(pickle.dumps(Harm(), 2), name="y.pt")["error"]
    assert "refused" in told((folder / "detector.pth").read_bytes()[:4000], name="z.pth")["error"]
    assert not (tmp_path / "harmed").exists()
    lacks = as_torch({name: each for name, each in whole.items() if name != "rpn.head.bbox_pred.bias"})
    assert "lacks rpn.head.bbox_pred.bias" in told(lacks)["error"]
    more = as_torch(whole) | {"roi_heads.mask_predictor.bias": torch.zeros(2)}
    assert "besides roi_heads.mask_predictor.bias" in told(more)["error"]
    assert "no detector that is known" in told({"fc.weight": torch.zeros(2, 2)})["error"]
    assert "no state dict" in told([1, 2])["error"]
    side = told(as_torch(whole), side=144)
    assert (side["field"], side["nearest"]) == ("side", 128)
    narrow = drawn(faster_rcnn_shapes(16, 4, (1, 1, 1, 1), 8, 16, 6), 5)
    assert told(as_torch(narrow))["field"] == "annotations", "number 6 is beyond five outputs"
    empty = tmp_path / "empty"
    empty.mkdir()
    line = ("share", "split", "train", "-o", "o.pack", "--data", folder, "--side", SIDE)
    given = (*line, "--annotations", folder / "t.json", "--teacher")
    assert "holds none" in refused(capsys, *given, empty)["error"]
    assert "no checkpoint" in refused(capsys, *given, folder / "3.png")["error"]
    assert "no split pack" in refused(capsys, *given, tmp_path / "absent")["error"]


def test_safetensors_and_a_folder_are_read_the_same(folder: Path, tmp_path: Path) -> None:
    from haversack.share._split_teachers import is_checkpoint, read_checkpoint

    (tmp_path / "model.safetensors").write_bytes((folder / "detector.safetensors").read_bytes())
    one, other = read_checkpoint(str(folder / "detector.pth")), read_checkpoint(str(tmp_path))
    assert is_checkpoint(str(tmp_path)) and not is_checkpoint("split-detector")
    assert one.family == other.family and set(one.tensors) == set(other.tensors)
    assert all((one.tensors[name] == other.tensors[name]).all() for name in one.tensors)
