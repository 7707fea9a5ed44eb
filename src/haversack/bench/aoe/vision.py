"""Calibration, trajectory, hands and actions of rendered clips, beside the exact truth and beside leaving
parts out.

Five clips, one of each phone, rooms and people of their own, through the stages C2 to C5 as they run in a
store, from the encoded video. The world is the clip's own: its first camera's pose is laid on the truth's.
Left out, on the same points: the gyroscope (rotations from the picture alone; its path is scaled in
hindsight, since nothing else can), the mask (points on hands and what they carry are followed, too), the
camera's motion (hands stay in the first camera's axes). The uniform split has as many parts as the truth.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.aoe._bench import bench
from haversack.bench.aoe._clips import Planted, Shelf
from haversack.bench.aoe._scene import Scene
from haversack.bench.aoe._world import FOCALS

F64 = npt.NDArray[np.float64]
SECONDS = 12.0
NEAR_S = 0.3
WATCHED = (
    *("bench/aoe/vision.py", "bench/aoe/_scene.py", "bench/aoe/_clips.py", "bench/aoe/_hand.py"),
    *("collect/_adjust.py", "collect/_camera.py", "collect/_clip_data.py", "collect/_hand_model.py"),
    *(
        "collect/_hand_size.py",
        "collect/_landmarks.py",
        "collect/_rotations.py",
        "collect/_tracks.py",
        "reference_models/hand-landmarks/landmarks.npz",
    ),
    "collect/stages/c[2-5]*.py",
)

FOCAL = Row(
    "focal", "focal length, |f/f_true - 1|, median of clips", "ratio", "quality", Bar("<=", 0.02), "ours"
)
GUESS = Row(
    "focal-guess",
    "the same of the first guess, 0.85 of the width",
    "ratio",
    "quality",
    Bar(">=", 0.08),
    "ours",
)
OFFSET = Row(
    "clock-offset", "offset of camera and IMU clocks, error", "ms", "quality", Bar("<=", 4.0), "ours"
)
PATH = Row("trajectory", "ATE as a share of the path", "ratio", "quality", Bar("<=", 0.03), "ours")
TURN = Row("rotation", "rotation RMSE", "deg", "quality", Bar("<=", 2.0), "ours")
NO_GYRO = Row(
    "no-gyro", "trajectory error without the gyroscope over ours", "ratio", "quality", Bar(">=", 1.3)
)
NO_MASK = Row(
    "no-mask", "trajectory error without masking hands over ours", "ratio", "quality", Bar(">=", 1.3)
)
WRIST = Row("wrist", "wrist error in the world, median", "mm", "quality", Bar("<=", 25.0), "ours")
STILL = Row(
    "no-camera-motion", "wrist error without camera motion over ours", "ratio", "quality", Bar(">=", 2.0)
)
ACTIONS = Row("actions", "boundaries, F1 at 0.3 s", "F1", "quality", Bar(">=", 0.75), "ours")
UNIFORM = Row(
    "uniform-split", "boundaries of a uniform split, F1 at 0.3 s", "F1", "quality", Bar("<=", 0.4), "ours"
)


@dataclass
class Found:
    """What the clips gave, one value a clip, and for hands one a frame."""

    focal: list[float] = field(default_factory=list)
    offset_ms: list[float] = field(default_factory=list)
    ate: list[float] = field(default_factory=list)
    turn: list[float] = field(default_factory=list)
    no_gyro: list[float] = field(default_factory=list)
    no_mask: list[float] = field(default_factory=list)
    wrist: list[float] = field(default_factory=list)
    still: list[float] = field(default_factory=list)
    hits: int = 0
    uniform: int = 0
    bounds: int = 0
    truths: int = 0
    known: list[float] = field(default_factory=list)


@bench.measure(
    *(FOCAL, GUESS, OFFSET, PATH, TURN, NO_GYRO, NO_MASK, WRIST, STILL, ACTIONS, UNIFORM),
    seconds=250,
    watches=WATCHED,
)
def clips(run: Run) -> Outcomes:
    """Five clips of twelve seconds."""
    found, guesses = Found(), [abs(0.85 / share - 1) for share in FOCALS]
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder, "store"))
        made = [
            shelf.put(Scene(run.seed + at, SECONDS, person=run.seed + at, phone=at, room=run.seed + at))
            for at in range(len(FOCALS))
        ]
        process_here(shelf.root, ("c1-ingest", "c2-calibration", "c3-trajectory", "c4-hands", "c5-actions"))
        for each in made:
            judge(shelf.root, each, found)
        shelf.close()
    note = f"{len(made)} clips of {SECONDS:g} s"
    share = 100 * float(np.mean(found.known))
    hands = f"{note}; hands are known in {share:.0f} % of the frames in which they are seen"

    def several(values: list[float], **how: Any) -> Outcome:
        return Outcome(Side("haversack", tuple(values)), note=note, **how)

    wrist, still = float(np.median(found.wrist)), float(np.median(found.still))
    ours = float(np.median(found.ate))
    return {
        FOCAL.id: several(found.focal),
        GUESS.id: Outcome(Side("0.85 of the width", tuple(guesses)), note="the five phones"),
        OFFSET.id: several(found.offset_ms),
        PATH.id: several(found.ate),
        TURN.id: several(found.turn),
        NO_GYRO.id: Outcome.single(
            float(np.median(found.no_gyro)), ours, name="no gyroscope", against="haversack"
        ),
        NO_MASK.id: Outcome.single(
            float(np.median(found.no_mask)), ours, name="no mask", against="haversack"
        ),
        WRIST.id: Outcome.single(wrist, note=hands),
        STILL.id: Outcome.single(still, wrist, name="camera taken as still", against="haversack", note=note),
        ACTIONS.id: Outcome.single(f1(found.hits, found.bounds, found.truths), note=f"{note}, both hands"),
        UNIFORM.id: Outcome.single(f1(found.uniform, found.truths, found.truths), name="uniform split"),
    }


def process_here(root: Path, stages: tuple[str, ...] | None = None) -> None:
    """Run stages over a store in this process."""
    from haversack.collect._books import Books
    from haversack.collect._jobs import Jobs
    from haversack.collect._stages import load_stages, read_settings
    from haversack.collect._worker import run_one
    from haversack.collect.process import enter

    books, chosen = Books(root), load_stages(stages, read_settings(root))
    enter(books, {stage.name: stage.version for stage in chosen})
    jobs = Jobs(books, attempts=1, lease_s=3600)
    while run_one(root, jobs, "bench:1:here", chosen):
        pass
    bad = books.rows("SELECT stage, error FROM jobs WHERE state = 'quarantined'")
    books.close()
    if bad:
        raise RuntimeError(f"{bad[0]['stage']}: {bad[0]['error']}")


def judge(root: Path, each: Planted, found: Found) -> None:
    """Compare a clip with its truth."""
    import json

    folder, scene = root / "stages" / each.clip, each.scene
    said = json.loads((folder / "c2-calibration@1" / "calibration.json").read_text(encoding="utf-8"))
    if said["f"] is not None:
        found.focal.append(abs(said["f"] / scene.f - 1))
        found.offset_ms.append(1000 * abs(said["offset_s"] - scene.offset_s))
    with np.load(folder / "c3-trajectory@1" / "trajectory.npz") as file:
        R, p, t_ns = file["R"], file["p"], file["t_ns"]
    t = (t_ns - t_ns[0]) * 1e-9
    true = [scene.pose(x) for x in t]
    R_true, p_true = np.stack([one[0] for one in true]), np.stack([one[1] for one in true])
    ate, turn = errors(R, p, R_true, p_true)
    found.ate.append(ate)
    found.turn.append(turn)
    without_gyro, without_mask = ablated(root, each, said, R_true, p_true)
    found.no_gyro.append(without_gyro)
    found.no_mask.append(without_mask)
    with np.load(folder / "c4-hands@1" / "hands.npz") as file:
        world, local, valid = file["world"][:, :, 0], file["joints"][:, :, 0], file["valid"]
    A = R_true[0] @ R[0].T
    for side in (0, 1):
        wrist = np.stack([scene.wrist(x, side)[0] for x in t])
        here = (world[:, side] - p[0]) @ A.T + p_true[0]
        fixed = local[:, side] @ R_true[0].T + p_true[0]
        known = valid[:, side]
        found.wrist += (1000 * np.linalg.norm(here - wrist, axis=1)[known]).tolist()
        found.still += (1000 * np.linalg.norm(fixed - wrist, axis=1)[known]).tolist()
        flat = np.stack([scene.project(w[None], *pose)[0][0] for w, pose in zip(wrist, true, strict=True)])
        shown = ((flat > 4) & (flat < [316, 176])).all(1)
        found.known.append(float(known[shown].mean()) if shown.any() else 1.0)
    rows = json.loads((folder / "c5-actions@1" / "actions.json").read_text(encoding="utf-8"))
    for side, hand in enumerate(("left", "right")):
        mine = [row for row in rows if row["hand"] == hand]
        bounds = sorted({row["t0"] for row in mine} - {0.0})
        truth = [action.t0 for action in scene.actions if action.hand == side and action.t0 > 0]
        even = np.linspace(0, scene.seconds, len(truth) + 2)[1:-1].tolist()
        found.hits += matched(bounds, truth)
        found.uniform += matched(even, truth)
        found.bounds += len(bounds)
        found.truths += len(truth)


def ablated(root: Path, each: Planted, said: dict[str, Any], R: F64, p: F64) -> tuple[float, float]:
    """The trajectory's error without the gyroscope, and without masking hands."""
    from haversack.collect._books import Books
    from haversack.collect._camera import Camera
    from haversack.collect._clip_data import ClipData
    from haversack.collect._tracks import track
    from haversack.collect.bundle import parse_manifest
    from haversack.collect.stages.c2_calibration import read_tracks
    from haversack.collect.stages.c3_trajectory import trajectory

    books = Books(root)
    row = books.row("SELECT manifest FROM clips WHERE uuid = ?", (each.clip,))
    books.close()
    assert row is not None
    manifest = parse_manifest(row["manifest"])
    data = ClipData.read(root / "clips" / manifest.folder, manifest)
    guess = Camera.guess(*data.working)
    camera = Camera(said["f"] or guess.f, guess.cx, guess.cy, guess.width, guess.height, said["k1"] or 0.0)
    offset = said["offset_s"] or 0.0
    tracks = read_tracks(root / "stages" / each.clip / "c2-calibration@1", len(data.t_ns))
    blind = trajectory(data, tracks, camera, offset, gyro=False)
    open_tracks = track(data.greys(masked=False), data.flow(guess))
    bare = trajectory(data, open_tracks, camera, offset)
    first = 1.0 if blind is None else errors(blind.R, blind.p, R, p, scaled=True)[0]
    return first, 1.0 if bare is None else errors(bare.R, bare.p, R, p)[0]


def errors(R: F64, p: F64, R_true: F64, p_true: F64, *, scaled: bool = False) -> tuple[float, float]:
    """ATE over the path's length after a rigid alignment (with `scaled` also of the scale), and the
    rotations' RMSE in degrees after one of their own."""
    from haversack.collect._rotations import log

    a, b = p - p.mean(0), p_true - p_true.mean(0)
    B = nearest_rotation(b.T @ a)
    if scaled:
        a = a * float((b * (a @ B.T)).sum() / max(float((a * a).sum()), 1e-12))
    ate = float(np.sqrt(((a @ B.T - b) ** 2).sum(1).mean()))
    length = float(np.linalg.norm(np.diff(p_true, axis=0), axis=1).sum())
    A = nearest_rotation((R_true @ R.transpose(0, 2, 1)).sum(0))
    off = [float(np.linalg.norm(log(A @ one @ two.T))) for one, two in zip(R, R_true, strict=True)]
    return ate / length, float(np.degrees(np.sqrt(np.mean(np.square(off)))))


def nearest_rotation(M: F64) -> F64:
    """The rotation R that makes trace(R^T M) largest."""
    U, _, V = np.linalg.svd(M)
    found: F64 = U @ np.diag([1.0, 1.0, float(np.linalg.det(U @ V))]) @ V
    return found


def matched(found: list[float], truth: list[float]) -> int:
    """How many boundaries of the truth have one of their own within 0.3 s."""
    free = list(found)
    hits = 0
    for t in truth:
        near = [b for b in free if abs(b - t) <= NEAR_S]
        if near:
            free.remove(min(near, key=lambda b: abs(b - t)))
            hits += 1
    return hits


def f1(hits: int, found: int, truth: int) -> float:
    """Twice the hits over both counts."""
    return 2 * hits / max(1, found + truth)
