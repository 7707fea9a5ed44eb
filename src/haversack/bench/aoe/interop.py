"""The export beside readers that are not its writer: clips of a rendered day, through the store, to a set.

The agent keeps clips of a day, the store takes them, ingest checks them, the export packs them. Then the
independent reader reads every row and some pictures of each episode, and each is compared with the clip that
its provenance names: what differs is counted. The public package would run in an environment of its own.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.aoe._bench import bench
from haversack.bench.aoe._world import FPS, Day

READER = Row(
    "independent-reader",
    "faults that an independent reader finds in an export, and rows or pictures that are not their clip's",
    "faults",
    "quality",
    Bar("==", 0.0),
    "ours",
)
PUBLIC = Row(
    "lerobot", "the export loads in the public lerobot package", "yes", "quality", Bar("==", 1.0), "ours"
)
NEAR = 12.0
"""Mean difference of a picture encoded twice, in levels of 255, beyond which it is another picture."""


@bench.measure(READER, seconds=60)
def reader(run: Run) -> Outcomes:
    """A day of two minutes."""
    from haversack.collect.export import export
    from haversack.collect.lerobot_reader import validate_dataset
    from haversack.collect.process import Settings, process

    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "store"), Path(folder, "set")
        clips = _stored(run.seed, root, Path(folder, "spool"))
        process(root, ["c1-ingest"], Settings(workers=1))
        done = export(root, out)
        faults = len(validate_dataset(out))
        wrong, rows, pictures = _differing(out, {clip.name: clip for clip in clips})
    note = f"{done.episodes} episodes, {rows} rows and {pictures} pictures compared"
    return {READER.id: Outcome.single(float(faults + wrong), note=note)}


@bench.measure(PUBLIC, seconds=0.1)
def public(run: Run) -> Outcomes:
    """Not here."""
    raise Unavailable(
        "no environment for the public package: its releases want another PyTorch and gigabytes of others"
    )


ROUND = Row(
    "round-trip", "v2.1 to v3.0 and back, values changed", "values", "quality", Bar("==", 0.0), "ours"
)


@bench.measure(ROUND, seconds=10)
def round_trip(run: Run) -> Outcomes:
    """Three episodes of noise, to v2.1, back to v3.0: rows, pictures, statistics and notes that differ."""
    from haversack.collect.export import CAMERA
    from haversack.collect.lerobot_reader import LeRobotV3
    from haversack.collect.lerobot_v3 import DatasetWriter, Feature
    from haversack.collect.lerobot_v21 import to_v3, to_v21

    rng = np.random.default_rng(run.seed)
    features = {
        CAMERA: Feature("video", (48, 64, 3), ("height", "width", "channels")),
        "observation.state": Feature("float32", (48,)),
        "annotation.action_id": Feature("int64", (2,)),
    }
    with tempfile.TemporaryDirectory() as folder:
        one, old, two = (Path(folder, name) for name in ("one", "old", "two"))
        with DatasetWriter(one, 15, features) as writer:
            for number, count in enumerate((31, 17, 24)):
                columns: dict[str, Any] = {
                    "observation.state": rng.normal(0, 1, (count, 48)).astype(np.float32),
                    "annotation.action_id": rng.integers(-1, 16, (count, 2)),
                }
                pictures = rng.integers(0, 255, (count, 48, 64, 3), dtype=np.uint8)
                writer.add_episode(columns, f"task {number % 2}", {CAMERA: iter(pictures)})
            writer.finish(provenance={"seed": run.seed})
        to_v3(to_v21(one, old), two)
        a, b = LeRobotV3(one), LeRobotV3(two)
        wrong = int(a.info != b.info) + int(a.tasks != b.tasks) + int(a.episodes != b.episodes)
        values = 0
        for left, right in zip(a.episodes, b.episodes, strict=True):
            wrong += not a.table(left).equals(b.table(right))
            values += a.table(left).num_rows * 50
            pairs = zip(a.pictures(left, CAMERA), b.pictures(right, CAMERA), strict=True)
            for here, there in pairs:
                wrong += int((here != there).sum())
                values += here.size
        for name in ("stats", "provenance"):
            texts = [(path / "meta" / f"{name}.json").read_text(encoding="utf-8") for path in (one, two)]
            wrong += json.loads(texts[0]) != json.loads(texts[1])
    return {ROUND.id: Outcome.single(float(wrong), note=f"{values} values of rows and pictures compared")}


def _stored(seed: int, root: Path, spool: Path) -> list[Path]:
    """The clips that the agent keeps of a day, uploaded; their folders in the store."""
    from haversack.collect._bundle_writer import ClipInfo
    from haversack.collect._devices import device_of, enrol, invite
    from haversack.collect.agent import EdgeAgent
    from haversack.collect.bundle import Bundle, Consent, DeviceRecord
    from haversack.collect.detector import SkinDetector
    from haversack.collect.store import Store, StoreLimits

    store = Store(root, StoreLimits(keep_free_bytes=0))
    code = invite(store.books, "c-bench", policy_version="1", retention_days=30)
    install = "the-install-of-a-bench"
    token = enrol(store.books, code, install, "bench", "linux")["token"]
    owner = device_of(store.books, f"Bearer {token}", install)
    clip = ClipInfo(
        device=DeviceRecord(id=owner.id, model="bench", os="linux", lens_id="0"),
        session="day",
        consent=Consent(contributor_pseudonym="c-bench", policy_version="1", retention_days=30),
        fps_nominal=float(FPS),
        t0_wall_ns=0,
    )
    day = _day_with_work(seed)
    agent = EdgeAgent(spool, clip, SkinDetector())
    agent.tick(time.time_ns(), 0)
    imu_t, imu = day.imu()
    at, made = 0, []
    for t_ns, picture in day.frames():
        while at < len(imu_t) and imu_t[at] <= t_ns:
            agent.push_imu(int(imu_t[at]), tuple(imu[at].tolist()))
            at += 1
        made += agent.push_frame(t_ns, picture)
    made += agent.finish()
    found = []
    for folder in made:
        begun = store.begin(owner, (folder / "manifest.json").read_bytes())
        for file in Bundle.open(folder).manifest.files:
            if file.sha256 in begun.missing:
                store.append(owner, begun.upload, file.sha256, 0, (folder / file.name).read_bytes())
        found.append(store.clip_path(store.complete(owner, begun.upload)))
    store.books.close()
    if not found:
        raise Unavailable("the agent kept nothing of this day")
    return found


def _day_with_work(seed: int) -> Day:
    """The first day from `seed` on that has interaction in its first two minutes."""
    while True:
        day = Day(seed, 120.0)
        if any(part.kind == "work" and part.end - part.begin > 10 for part in day.stretches):
            return day
        seed += 1


def _differing(out: Path, clips: dict[str, Path]) -> tuple[int, int, int]:
    """Rows and pictures that are not those of their clip, and how many of each were looked at."""
    from haversack.collect._tables import IMU_AXES, read_table
    from haversack.collect._video import decoded
    from haversack.collect.export import CAMERA
    from haversack.collect.lerobot_reader import LeRobotV3

    data = LeRobotV3(out)
    origin: Any = json.loads((out / "meta" / "provenance.json").read_text(encoding="utf-8"))
    wrong = rows = pictures = 0
    for entry, episode in zip(origin["episodes"], data.episodes, strict=True):
        folder = clips[entry["clip_uuid"]]
        times = read_table(folder / "frames.parquet")["t_ns"]
        imu = read_table(folder / "imu.parquet")
        shots = [frame.to_ndarray(format="rgb24") for frame in decoded(folder / "video.mp4")]
        begin, length = episode["dataset_from_index"], episode["length"]
        for frame in range(length):
            when = times[0] + frame * 1e9 / data.fps
            row = data.row(begin + frame)
            expected = [np.interp(when, imu["t_ns"], imu[axis]) for axis in IMU_AXES]
            wrong += not np.allclose(row["observation.imu"], expected, atol=1e-3)
            rows += 1
            if frame % 20 == 0:
                shot = shots[int(np.abs(times - when).argmin())].astype(float)
                wrong += bool(np.abs(data.picture(begin + frame, CAMERA) - shot).mean() > NEAR)
                pictures += 1
    return wrong, rows, pictures
