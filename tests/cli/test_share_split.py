"""`haversack share split` as a person types it: the shipped network served and run, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli.said import refused, said

from haversack.share._split_data import made
from haversack.share._split_frame import HEAD_BYTES
from haversack.share._split_pack import open_split

PACK = "split-detector"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    program = "import sys; from haversack.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", program, "share", "split", "serve", PACK, "--port", "0", "--json"]
    started = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    text = ""
    while "}" not in text:
        text += started.stdout.readline()
    yield json.loads(text)["url"]
    started.terminate()
    assert started.wait(15) in (0, 143)


def test_pictures_are_answered_in_time(server: str, capsys: Any, tmp_path: Path) -> None:
    from PIL import Image

    for number, picture in enumerate(made(3, 5, "test").pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    trace, ledger = tmp_path / "t.jsonl", tmp_path / "ledger"
    record = said(
        capsys,
        *("share", "split", "run", PACK, tmp_path, "--server", server, "--deadline-ms", 20_000),
        *("--trace", trace, "--ledger", ledger),
        schema="share-split-run",
    )
    assert (record["frames"], record["hits"], record["lost"]) == (3, 3, 0)
    table = open_split(PACK)[1].table
    best = max(table, key=table.__getitem__)
    assert record["modes"][-1]["mode"] == 10 * best[0] + best[1]
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [line["picture"] for line in lines] == ["0.png", "1.png", "2.png"]
    assert sum(line["bytes"] for line in lines) == record["uplink_bytes"]


def test_one_mode_is_kept_over_an_emulated_link(server: str, capsys: Any) -> None:
    record = said(
        capsys,
        *("share", "split", "run", PACK, "made", "--server", server, "--mode", 12, "--frames", 4),
        *("--link", "wifi", "--deadline-ms", 20_000),
        schema="share-split-run",
    )
    assert record["modes"] == [{"mode": 12, "frames": 4}]
    assert record["uplink_bytes"] == 4 * (864 + HEAD_BYTES)


def test_a_device_s_half_and_its_times(capsys: Any, tmp_path: Path) -> None:
    half = tmp_path / "device.pack"
    sizes = said(capsys, "share", "split", "halve", PACK, "-o", half, schema="share-split-halve")
    assert sizes["device_bytes"] < sizes["whole_bytes"] / 4
    assert said(capsys, "check", half)["whole"] is True
    profile = tmp_path / "p.json"
    record = said(
        capsys,
        *("share", "split", "bench-device", half, "--rounds", 7, "-o", profile),
        schema="share-split-bench-device",
    )
    assert [one["payload_bytes"] for one in record["modes"][:4]] == [432, 864, 1296, 1728]
    assert record["switch_us"] < 1000
    assert set(json.loads(profile.read_text())["encode_ms"]) == {"1", "2", "3", "4"}
    told = refused(capsys, "share", "split", "serve", half, "--port", 0)
    assert "device's half" in told["error"]


def test_controllers_are_played_over_a_public_trace(capsys: Any, tmp_path: Path) -> None:
    frame = {"deadline": 300, "encoder_time": 70.0, "transfer_time": 100.0, "bw": 200.0, "map": 30.0}
    lines = [
        frame | {"mode": 10 * (1 + at % 2) + 3, "e2e": 400 if at % 4 == 3 else 250, "kbs": 20_000}
        for at in range(40)
    ]
    trace = tmp_path / "device.jsonl"
    trace.write_text("\n".join(json.dumps(line) for line in lines))
    record = said(
        capsys, "share", "split", "play", PACK, "--link", trace, "--seconds", 20, schema="share-split-play"
    )
    assert record["deadline_ms"] == 300 and record["encode_ms"]["1"] == record["encode_ms"]["2"] == 70
    assert record["encode_ms"]["4"] == 140, "of the nearest number of members, in proportion"
    assert record["traced"] == {"frames": 40, "hit_share": 0.75, "mean_map": 22.5}
    played = {one["controller"]: one for one in record["controllers"]}
    assert list(played)[:2] == ["adaptive", "published"] and list(played)[3] == "oracle"
    assert played["oracle"]["mean_quality"] >= max(one["mean_quality"] for one in played.values()) - 1e-9
    assert played["adaptive"]["hit_share"] > 0.9
    again = said(capsys, "share", "split", "play", PACK, "--link", trace, "--seconds", 20)
    assert again == record
    assert refused(capsys, "share", "split", "play", PACK, "--link", "walk")["field"] == "profile"


def test_a_damaged_pack_is_found(capsys: Any, tmp_path: Path) -> None:
    half = tmp_path / "device.pack"
    said(capsys, "share", "split", "halve", PACK, "-o", half)
    data = bytearray((half / "member-1.onnx").read_bytes())
    data[100] ^= 1
    (half / "member-1.onnx").write_bytes(data)
    assert said(capsys, "check", half, code=2)["whole"] is False


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (("run", PACK, "made", "--server", "http://127.0.0.1:9", "--mode", 51), "k"),
        (("run", PACK, "made", "--server", "http://127.0.0.1:9", "--mode", 25), "b"),
        (("run", PACK, "made", "--server", "http://127.0.0.1:9", "--controller", "adaptve"), "controller"),
        (("run", PACK, "made", "--server", "http://127.0.0.1:9", "--deadline-ms", -1), "deadline_ms"),
        (("run", PACK, "no-such-folder", "--server", "http://127.0.0.1:9"), "server"),
        (("run", PACK, "made", "--server", "http://127.0.0.1:9", "--link", "squar"), "link"),
        (("run", "no.pack", "made", "--server", "http://127.0.0.1:9"), "pack"),
        (("bench-device", PACK, "--backend", "tflite"), "backend"),
        (("serve", PACK, "--host", "0.0.0.0"), "token"),
        (("train", "-o", "x.pack", "--side", 50), "side"),
        (("train", "-o", "x.pack", "--cut", "slimmable:members=7"), "members"),
        (("train", "-o", "x.pack", "--cut", "layered"), None),
        (("train", "-o", "x.pack", "--task", "segment"), "task"),
        (("train", "-o", "x.pack", "--annotations", "a.json"), "data"),
        (("evaluate", PACK, "--results", "r.json"), "annotations"),
    ],
)
def test_refusals(line: tuple[object, ...], field: str | None, capsys: Any) -> None:
    record = refused(capsys, "share", "split", *line)
    assert field is None or record["field"] == field
    assert re.search(r"\w", record["error"])


def test_detections_in_a_file_are_judged(capsys: Any, tmp_path: Path) -> None:
    from haversack.formats.coco import Coco, CocoImage, result_rows, write_coco

    boxes = np.array([[1, 2, 11, 22]], np.float32)
    image = CocoImage(4, "a.jpg", 40, 30, boxes, np.array([0]), np.array([False]))
    write_coco(tmp_path / "t.json", Coco(("cat",), (18,), (image,)))
    rows = list(result_rows(4, (18,), boxes, np.array([0.9], np.float32), np.array([0])))
    (tmp_path / "r.json").write_text(json.dumps(rows))
    record = said(
        capsys,
        *("share", "split", "evaluate", PACK, "--results", tmp_path / "r.json"),
        *("--annotations", tmp_path / "t.json"),
        schema="share-split-evaluate",
    )
    assert record["modes"] == [{"mode": 0, "quality": 1.0, "coco": 1.0}]
