"""Windows by the clock: processes answer what a session answers, from recordings and from live streams; the
command; sensors that stop, recordings that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.errors import UserError
from haversack.models.streams._events import WORDS, Recordings, make
from haversack.models.streams._folder import PHOTOS, bundled, read_photos
from haversack.sense import Pipeline, PipelinedSession
from haversack.sense._pipeline_recording import read_recording, write_recording
from haversack.sense._pipeline_run import Units
from haversack.sense._pipeline_space import Config

CONFIG = Config("medium", 25, "medium", 500)


@pytest.fixture(scope="module")
def data() -> Recordings:
    return make(3, 99, read_photos(bundled("events") / PHOTOS))


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline("events", config=CONFIG, skip=False) as opened:
        yield opened


@pytest.fixture
def plain(pipeline: Pipeline) -> Pipeline:
    pipeline.config, pipeline.blocking, pipeline.skip = CONFIG, 0, False
    return pipeline


def session_of(pipeline: Pipeline, units: Units) -> Any:
    session = PipelinedSession(pipeline.network, config=CONFIG, skip=False)
    session.push("microphone", units.sound, 0.0)
    for number, frame in enumerate(units.frames):
        if number not in units.missing:
            session.push("camera", frame, number / 30)
    return session.result()


@pytest.mark.parametrize("blocking", [0, 4])
def test_processes_answer_what_a_session_does(plain: Pipeline, data: Recordings, blocking: int) -> None:
    units = Units(data.frames[0], data.sound[0])
    plain.blocking = blocking
    found, wanted = plain.answer(units), session_of(plain, units)
    assert np.abs(found.probabilities - wanted.probabilities).max() < 1e-4
    assert found.used == found.planned == (25, 8) and not found.stopped
    # Nothing is answered before it was sensed, and the three latencies are of one moment.
    assert found.stages["sense"] == pytest.approx(1000, abs=1) and found.latency_ms > 0
    assert found.latency_first_ms - found.latency_ms == pytest.approx(500, abs=1)
    assert found.wall_ms == pytest.approx(found.latency_ms + 1000, abs=1)
    encoded = [span for span in found.spans if span[:2] == ("camera", "encode")]
    first = min(start for *_, start, _ in encoded)
    assert first >= (1.0 if blocking else 1 / 30) - 1e-3
    assert len(encoded) == (1 if blocking else 25)


def test_missing_frames_and_a_camera_that_stops(plain: Pipeline, data: Recordings) -> None:
    units = Units(data.frames[1], data.sound[1], (3, 10, 11))
    found = plain.answer(units)
    assert any("units missing" in each for each in found.warnings) and found.used == (25, 8)
    short = plain.answer(Units(data.frames[1][:20], data.sound[1]))
    assert short.used[0] == 17 and any("camera stopped after 17 of 25" in each for each in short.warnings)
    with pytest.raises(UserError, match="camera stopped after 5 of 25 units, too few"):
        plain.answer(Units(data.frames[1][:6], data.sound[1]))
    with pytest.raises(UserError, match="microphone stopped after"):
        plain.answer(Units(data.frames[1], data.sound[1][:900]))
    assert plain.answer(Units(data.frames[1], data.sound[1])).used == (25, 8)  # and it goes on


def test_what_a_pipeline_refuses(plain: Pipeline) -> None:
    with pytest.raises(UserError, match="neither a configuration nor a deadline"):
        plain.use(plain.measure(runs=2))
    with pytest.raises(UserError, match="not both"):
        plain.answer()
    with pytest.raises(UserError, match="slower=0"):
        Pipeline("events", config=CONFIG, slower=0)
    with pytest.raises(UserError, match="no model of a pipeline"):
        Pipeline("/no/such", config=CONFIG)


def paced(path: Path, blocks: list[bytes], period: float, ended: threading.Event) -> None:
    """A sensor: one block a period, again from the start, until `ended`."""
    try:
        with path.open("wb", buffering=0) as pipe:
            begun, at = time.monotonic(), 0
            while not ended.wait(max(0.0, begun + (at + 1) * period - time.monotonic())):
                pipe.write(blocks[at % len(blocks)])
                at += 1
    except BrokenPipeError:
        pass


@pytest.fixture
def streams(tmp_path: Path, data: Recordings) -> Iterator[Callable[..., tuple[Path, Path]]]:
    """Named pipes with sensors at their other ends."""
    ended, threads = threading.Event(), []

    def start(*, rate: float = 30.0, frames: int = 30) -> tuple[Path, Path]:
        camera, microphone = tmp_path / "camera", tmp_path / "microphone"
        for path in (camera, microphone):
            os.mkfifo(path)
        sound = np.rint(data.sound[0] * 32767).astype("<i2")
        pictures = [frame.tobytes() for frame in data.frames[0][:frames]]
        sounds = [sound[at : at + 400].tobytes() for at in range(0, 4000, 400)]
        for path, blocks, period in ((camera, pictures, 1 / rate), (microphone, sounds, 0.05)):
            threads.append(threading.Thread(target=paced, args=(path, blocks, period, ended), daemon=True))
            threads[-1].start()
        return camera, microphone

    yield start
    ended.set()
    for thread in threads:
        thread.join(10)


def test_live_streams_are_answered_by_the_command(
    streams: Callable[..., tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    camera, microphone = streams()
    line = ["sense", "pipeline", "--camera", str(camera), "--microphone", str(microphone), "--windows", "2"]
    assert main([*line, "--config", str(CONFIG), "--no-skip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["windows"]) == 2 and found["labelled"] == 0
    for window in found["windows"]:
        assert window["used"] == [25, 8] and window["label"] in WORDS and window["truth"] is None


def test_a_live_camera_at_another_rate(
    streams: Callable[..., tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    camera, microphone = streams(rate=12.0)
    line = ["sense", "pipeline", "--camera", str(camera), "--microphone", str(microphone), "--windows", "1"]
    assert main([*line, "--config", str(CONFIG), "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert "camera" in record["error"] and record["field"] in ("rate", "camera", "units")


def said(capsys: pytest.CaptureFixture[str], line: list[str]) -> dict[str, Any]:
    assert main(["sense", "pipeline", *line, "--json"]) == 0
    out = capsys.readouterr().out
    msgspec.json.decode(out, type=OUTPUTS["sense-pipeline"])
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_command_chooses_plots_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: str(tmp_path / name) for name in ("p.svg", "p.json", "r.npz")}
    line = [
        "--made",
        "2",
        "--deadline-ms",
        "500",
        "--plot",
        files["p.svg"],
        "--save-profile",
        files["p.json"],
    ]
    found = said(capsys, [*line, "--save-recording", files["r.npz"]])
    assert len(found["windows"]) == found["labelled"] == 2 and found["mode"] == "pipelined"
    assert all(one["stages"]["optimizer"] > 0 and one["predicted_ms"] > 0 for one in found["windows"])
    drawn = ElementTree.fromstring(Path(files["p.svg"]).read_text())
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}rect")) > 20
    for name, file in (("plot", "p.svg"), ("profile", "p.json"), ("recording", "r.npz")):
        assert found["files"][name]["nbytes"] == Path(files[file]).stat().st_size
    again = said(capsys, ["--replay", files["r.npz"], "--profile", files["p.json"], "--deadline-ms", "500"])
    assert again["windows"][0]["truth"] == found["windows"][0]["truth"]


def test_memory_is_what_was_planned() -> None:
    """In a process of its own: what runs the tests holds more than the command does."""
    program = "import sys; from haversack.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [
        sys.executable,
        "-c",
        program,
        "sense",
        "pipeline",
        "--made",
        "1",
        "--config",
        str(CONFIG),
        "--json",
    ]
    memory = json.loads(subprocess.run(line, capture_output=True, check=True).stdout)["ram_mib"]
    assert 0.6 * memory["planned"] < memory["measured"] <= memory["planned"]


def test_for_people_it_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sense", "pipeline", "--made", "1", "--config", "small:20:small:600", "--blocking"]) == 0
    out = capsys.readouterr().out
    assert "blocking: answered" in out and "small:20:small:600" in out and "three processes" in out


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (["--config", "small:21:small:400"], "config"),
        (["--replay", "/no/such.npz"], "replay"),
        (["--camera", "/no/such", "--microphone", "/no/such"], "stream"),
        (["--camera", "/dev/null"], "microphone"),
        (["--made", "-1"], "made"),
        (["--made", "1", "--batch", "0"], "batch"),
        (["--made", "1", "--replay", "x.npz"], "made"),
        (["/no/such"], "model"),
        (["--slower", "0", "--config", "small:20:small:400"], "slower"),
        (["--profile", "/no/such.json"], None),
        (["--deadline-ms", "0.0001", "--made", "1"], "deadline_ms"),
    ],
)
def test_options_that_cannot_be(
    line: list[str], field: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sense", "pipeline", *line, "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert record["error"].count("\n") == 0
    assert field is None or record["field"] == field


# Recordings


@pytest.fixture
def arrays(data: Recordings) -> dict[str, Any]:
    return {
        "frames": data.frames[2],
        "sound": data.sound[2],
        "sound_rate": np.array(8000.0),
        "label": np.array(WORDS[data.labels[2]]),
    }


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_recording_is_read_as_it_was_written(pipeline: Pipeline, data: Recordings, tmp_path: Path) -> None:
    units = Units(data.frames[2], data.sound[2])
    write_recording(tmp_path / "r.npz", units, pipeline.shape, "aiu")
    again = read_recording(tmp_path / "r.npz", pipeline.shape)
    assert (again.units.frames == units.frames).all() and (again.units.sound == units.sound).all()
    assert again.label == "aiu" and not again.warnings


def test_a_log_with_lost_and_late_frames(pipeline: Pipeline, arrays: dict[str, Any], tmp_path: Path) -> None:
    times = np.arange(30) / 30
    keep = [at for at in range(30) if at not in (7, 8)]
    arrays |= {"frames": arrays["frames"][keep], "frame_times": times[keep]}
    found = read_recording(saved(tmp_path / "a.npz", arrays), pipeline.shape)
    assert found.units.missing == (7, 8) and "2 units missing" in found.warnings[0]
    assert (found.units.frames[9] == arrays["frames"][7]).all()
    swapped = times[keep].copy()
    swapped[[4, 5]] = swapped[[5, 4]]
    arrays |= {"frame_times": swapped}
    with pytest.raises(UserError, match="out of order"):
        read_recording(saved(tmp_path / "b.npz", arrays), pipeline.shape)
    assert "1 late, dropped" in read_recording(tmp_path / "b.npz", pipeline.shape, late="drop").warnings[0]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"sound_rate": np.array(16000.0)}, "16000 samples a second and the model was trained on 8000"),
        ({"frames": np.zeros((30, 48, 48), np.uint8)}, "48, 48"),
        ({"frames": np.zeros((30, 32, 32), np.float32)}, "float32"),
        ({"sound": np.full(4000, np.nan, np.float32)}, "no row of numbers"),
        ({"label": np.array("xyz")}, "none of the model's 12 classes"),
        ({"frame_times": np.arange(30) / 15}, "trained on 30|missing"),
        ({"frame_times": np.arange(29) / 30}, "29"),
        ({"label": np.array([{"a": 1}], dtype=object)}, "no .npz file of plain arrays"),
    ],
)
def test_recordings_that_do_not_fit(
    pipeline: Pipeline, arrays: dict[str, Any], tmp_path: Path, change: dict[str, Any], wanted: str
) -> None:
    path = saved(tmp_path / "r.npz", arrays | change)
    with pytest.raises(UserError, match=wanted):
        read_recording(path, pipeline.shape)


def test_files_that_are_no_recording(pipeline: Pipeline, arrays: dict[str, Any], tmp_path: Path) -> None:
    del arrays["sound"]
    with pytest.raises(UserError, match="has no sound"):
        read_recording(saved(tmp_path / "r.npz", arrays), pipeline.shape)
    (tmp_path / "x.npz").write_bytes(b"PK not really")
    with pytest.raises(UserError, match="damaged"):
        read_recording(tmp_path / "x.npz", pipeline.shape)
