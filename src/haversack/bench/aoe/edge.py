"""What the agent keeps of rendered days: recall of interaction, bytes and energy, beside three other ways.

One pass over each day feeds everything. (A) records everything, encoded as the agent encodes. (B) is the same
trigger on motion alone: a look at 5 Hz all day, evidence = gain x the near field's own motion; its gain is
chosen in hindsight, on the same day, as the one with the fewest bytes at our recall. (C) records the first
seconds of every minute, as many as our bytes pay for. Bytes of A, B and C are those of A's one-second groups.

Energy is the specification's proxy, of which only ratios mean anything: 0.4 nJ a multiply-add, 60 nJ an
encoded 16 x 16 block, 0.1 uJ a byte sent, 150 mW while the camera is on, 15 mW for the motion sensors.

Speed is stream seconds over processor seconds of the whole agent, encoder included, on one core.
The detector is the small trained one (`hands`), whose pictures come from days of other seeds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.aoe._bench import bench
from haversack.bench.aoe._world import FPS, HEIGHT, WIDTH, Day, script

U8 = npt.NDArray[np.uint8]
Spans = list[tuple[float, float]]
SECOND = 1_000_000_000
LOOK = 3
"""Frames between looks of B: 5 Hz."""
MATCHING_MACS = 169 * 160 * 90
DETECTOR_MACS = 5_200_000
BLOCKS = (WIDTH // 16) * -(-HEIGHT // 16)

RECALL = Row(
    "edge-recall",
    "interaction seconds that are kept",
    "share",
    "quality",
    Bar(">=", 0.95),
    "ours",
    quick=True,
)
BYTES = Row("edge-bytes", "bytes kept, of recording everything", "MiB", "bytes", Bar("<=", 0.35), quick=True)
ENERGY = Row("edge-energy", "energy proxy, of recording everything", "J", "quality", Bar("<=", 0.45))
MOTION = Row(
    "edge-motion", "our bytes, of a motion trigger's at equal recall", "MiB", "bytes", Bar("<=", 1 / 1.5)
)
DUTY = Row("edge-duty", "recall of a duty cycle at our bytes", "share", "quality", Bar("<=", 0.6), "ours")
SPEED = Row(
    "edge-speed",
    "stream seconds a processor second, one core",
    "s/s",
    "time",
    Bar(">=", 1.0),
    "ours",
    quick=True,
)


@dataclass
class Seen:
    """What one day brought."""

    truth: Spans
    ours: Spans
    seconds: float
    ours_bytes: int
    group_bytes: npt.NDArray[np.float64]
    motion: list[tuple[int, float]]
    ours_joules: float
    all_joules: float
    speeds: list[float] = field(default_factory=list)


@bench.measure(RECALL, BYTES, ENERGY, MOTION, DUTY, SPEED, seconds=1500, quick_seconds=45)
def days(run: Run) -> Outcomes:
    """Two days of 15 minutes (one of two and a half in a quick run)."""
    if run.quick:
        seen = [watch(worked(run.seed, 150.0), 150.0)]
    else:
        seen = [watch(worked(run.seed + at, 900.0), 900.0) for at in range(2)]
    truth = sum(end - begin for day in seen for begin, end in day.truth)
    kept = sum(overlap(day.truth, day.ours) for day in seen)
    recall = kept / truth
    ours, everything = sum(day.ours_bytes for day in seen), sum(float(day.group_bytes.sum()) for day in seen)
    motion_bytes, gain, reached = cheapest_motion(seen, recall)
    duty = duty_recall(seen, ours / everything)
    share = truth / sum(day.seconds for day in seen)
    minutes = sum(day.seconds for day in seen) / 60
    note = f"{minutes:.1f} rendered minutes, {100 * share:.0f} % of them interaction"
    speeds = tuple(speed for day in seen for speed in day.speeds)
    mib = 2**20
    return {
        RECALL.id: Outcome.single(recall, note=note),
        BYTES.id: Outcome.single(ours / mib, everything / mib, against="record everything", note=note),
        ENERGY.id: Outcome.single(
            sum(day.ours_joules for day in seen),
            sum(day.all_joules for day in seen),
            against="record everything",
            note="a proxy (see the file)",
        ),
        MOTION.id: Outcome.single(
            ours / mib,
            motion_bytes / mib,
            against="motion trigger",
            note=f"its gain {gain:g}, chosen in hindsight, reaches a recall of {reached:.3f}",
        ),
        DUTY.id: Outcome.single(duty, name="duty cycle", note=f"ours reaches {recall:.3f} at the same bytes"),
        SPEED.id: Outcome(
            Side("haversack", speeds), note="pieces of the stream; numpy and x264, no SIMD of ours"
        ),
    }


def worked(seed: int, seconds: float) -> int:
    """The seed itself, or the next of its kind whose day has work in it: a short day may have none."""
    while not any(part.kind == "work" and part.end - part.begin > 5 for part in script(seed, seconds)):
        seed += 1000
    return seed


def watch(seed: int, seconds: float) -> Seen:
    """One pass over a day: the agent, everything encoded, and the looks of a motion trigger."""
    from haversack.collect._ring import Ring
    from haversack.collect.agent import EdgeAgent
    from haversack.collect.detector import HANDS, OnnxDetector
    from haversack.collect.motion_gate import MotionLimits, residual, shrink

    day, limits = Day(seed, seconds), MotionLimits()
    imu_t, imu = day.imu()
    found: list[Path] = []
    motion: list[tuple[int, float]] = []
    speeds: list[float] = []
    before = None
    with tempfile.TemporaryDirectory() as folder:
        agent = EdgeAgent(Path(folder, "spool"), _clip(), OnnxDetector(HANDS))
        agent.tick(0, 0)
        everything = Ring(Path(folder, "all"), float(FPS))
        at, spent, piece = 0, 0.0, max(1, round(seconds * FPS / 8))
        for number, (t_ns, picture) in enumerate(day.frames()):
            begun = time.process_time()
            while at < len(imu_t) and imu_t[at] <= t_ns:
                agent.push_imu(int(imu_t[at]), tuple(imu[at].tolist()))
                at += 1
            found += agent.push_frame(t_ns, picture)
            spent += time.process_time() - begun
            if (number + 1) % piece == 0:
                speeds.append(piece / FPS / max(spent, 1e-9))
                spent = 0.0
            everything.push(t_ns, picture)
            if number % LOOK == LOOK - 2:
                before = (t_ns, shrink(picture))
            elif number % LOOK == LOOK - 1 and before is not None:
                gap = (t_ns - before[0]) / SECOND
                motion.append((t_ns, residual(before[1], shrink(picture), gap, limits)[0]))
        found += agent.finish()
        everything.close_group()
        groups = np.zeros(int(np.ceil(seconds)) + 1)
        for group in everything.groups:
            groups[min(len(groups) - 1, group.t_ns[0] // SECOND)] += group.path.stat().st_size
        kept = [path for path in found if path.is_dir()]
        nbytes = sum(file.stat().st_size for path in kept for file in path.iterdir())
        ours = [_times(path) for path in kept]
    account = agent.account
    return Seen(
        [span for span in day.interactions() if span[1] > span[0]],
        ours,
        seconds,
        nbytes,
        groups,
        motion,
        joules(
            account.camera_ns / SECOND, account.encoded, nbytes, seconds, account.looks, account.detections
        ),
        joules(seconds, round(seconds * FPS), float(groups.sum()), 0.0, 0, 0),
        speeds,
    )


def joules(camera_s: float, encoded: int, nbytes: float, imu_s: float, looks: int, detections: int) -> float:
    """The proxy."""
    macs = looks * MATCHING_MACS + detections * DETECTOR_MACS
    return 0.4e-9 * macs + 60e-9 * encoded * BLOCKS + 0.1e-6 * nbytes + 0.150 * camera_s + 0.015 * imu_s


def overlap(truth: Spans, kept: Spans) -> float:
    """Seconds of `truth` that lie in `kept`; neither overlaps itself."""
    return sum(max(0.0, min(end, b) - max(begin, a)) for begin, end in truth for a, b in _joined(kept))


def _joined(spans: Spans) -> Spans:
    made: Spans = []
    for begin, end in sorted(spans):
        if made and begin <= made[-1][1]:
            made[-1] = (made[-1][0], max(end, made[-1][1]))
        else:
            made.append((begin, end))
    return made


def bytes_of(spans: Spans, groups: npt.NDArray[np.float64]) -> float:
    """Bytes of the one-second groups that `spans` touch, whole groups as the agent cuts them."""
    wanted = np.zeros(len(groups), bool)
    for begin, end in spans:
        wanted[max(0, int(begin)) : int(np.ceil(end))] = True
    return float(groups[wanted].sum())


def cheapest_motion(seen: Sequence[Seen], recall: float) -> tuple[float, float, float]:
    """Bytes, gain and recall of the motion trigger that costs least at our recall; if none reaches it, the
    one that reaches most."""
    from haversack.collect.trigger import replay

    tried = []
    truth = sum(end - begin for day in seen for begin, end in day.truth)
    for gain in np.geomspace(0.05, 20.0, 25):
        kept, nbytes = 0.0, 0.0
        for day in seen:
            samples = [(t, min(1.0, float(gain) * motion)) for t, motion in day.motion]
            spans = [(begin / SECOND, end / SECOND) for begin, end in replay(samples)["clips"]]
            kept += overlap(day.truth, spans)
            nbytes += bytes_of(spans, day.group_bytes)
        tried.append((nbytes, float(gain), kept / truth))
    enough = [one for one in tried if one[2] >= recall]
    return min(enough) if enough else max(tried, key=lambda one: one[2])


def duty_recall(seen: Sequence[Seen], share: float) -> float:
    """Recall of recording the first `share` of every minute."""
    truth = sum(end - begin for day in seen for begin, end in day.truth)
    kept = 0.0
    for day in seen:
        spans = [
            (minute * 60.0, minute * 60.0 + 60.0 * share) for minute in range(int(day.seconds // 60) + 1)
        ]
        kept += overlap(day.truth, spans)
    return kept / truth


def _times(path: Path) -> tuple[float, float]:
    from haversack.collect._tables import read_table

    times = read_table(path / "frames.parquet")["t_ns"]
    return float(times[0] / SECOND), float(times[-1] / SECOND)


def _clip() -> Any:
    from haversack.collect._bundle_writer import ClipInfo
    from haversack.collect.bundle import Consent, DeviceRecord

    return ClipInfo(
        device=DeviceRecord(id="bench", model="bench", os="linux", lens_id="0"),
        session="day",
        consent=Consent(contributor_pseudonym="c-bench", policy_version="1", retention_days=30),
        fps_nominal=float(FPS),
        t0_wall_ns=0,
    )
