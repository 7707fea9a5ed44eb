"""C7, filtering: clips that would teach a policy nothing, or something wrong, go no further.

Paper: AoE (arXiv 2602.23893); rules and thresholds are [inferred], the least motion is that of NeMo Curator's
filter.

Hard rules, in this order, each the reason it drops with: `short` (below 2 s), `dark` (mean brightness outside
25 to 230), `static` (points move by less than 0.00098 of the picture's height in half a second), `blurred`
(at 160 x 90 the mean variance of the Laplacian below 40, which depends on what is shown, or the mean blur
effect above 0.35, which hardly does: what is left of the steps between neighbours when the picture is
smoothed once more, Crete and others 2007 [recalled]), `no-hands` (visible in fewer than 40 % of the frames),
`lost` (tracking lost for more than 20 %), `rms` (reprojection above 2.5 px), `scale` (lengths are not
metres), `caption` (fewer than 0.57 of the moments in which C5 sees a hand at work are captioned with a verb
of the same kind).

The score is q = product of logistic functions of sharpness, exposure, visibility, tracking, activity and
agreement with the caption; `[c7-filter] least = 0.2` drops what lies below with `score`. The vector of
measures is kept for audits.

What we changed: motion is that of followed points, not of the codec's vectors; the logistics are set about
the rules' thresholds, not fitted; dropping all but the best of each task is the export's choice. Every
threshold is a setting of its name. Cost: decoding the clip once, small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from haversack.collect._clip_data import ClipData
from haversack.collect._stages import METRICS, Clip, Outcome, Stage
from haversack.collect._tracks import Tracks
from haversack.collect.motion_gate import sharpness, shrink
from haversack.collect.stages.c2_calibration import read_tracks
from haversack.collect.stages.c4_hands import HANDS
from haversack.collect.stages.c5_actions import ACTIONS, SIDES
from haversack.collect.stages.c6_captions import CAPTION
from haversack.core.errors import UserError, unknown_name

F64 = npt.NDArray[np.float64]
SYSTEM = 1
QUALITY = "quality.json"
AGREEMENT = 0.57
"""Set on rendered clips that no bench has: few right captions lie below, those of other clips more often."""
THRESHOLDS: dict[str, float] = {
    **{"seconds": 2.0, "darkest": 25.0, "brightest": 230.0, "motion": 0.00098, "sharpness": 40.0},
    **{"blur": 0.35, "visible": 0.4, "lost": 0.2, "rms_px": 2.5, "agreement": AGREEMENT, "metric": 1.0},
    "least": 0.0,
}
KINDS = {
    **{"reach": "empty", "idle": "still", "hold": "still", "grasp": "close", "release": "open"},
    **{"lift": "up", "place": "down", "insert": "down", "press": "down", "transport": "level"},
    **{"push": "level", "pull": "level", "rotate": "level", "pour": "level", "wipe": "rub", "cut": "rub"},
}


# ---- the maths


def motion(tracks: Tracks, height: int, fps: float) -> float:
    """Mean distance that points move in half a second, as a share of the picture's height."""
    gap = max(1, round(fps / 2))
    found = []
    for at in range(0, max(1, tracks.frames - gap), gap):
        one, two = tracks.pair(at, min(at + gap, tracks.frames - 1))
        if len(one) >= 8:
            found.append(float(np.linalg.norm(one - two, axis=1).mean()))
    return float(np.mean(found)) / height if found else 1.0


def blur_effect(grey: npt.NDArray[np.float32], size: int = 11) -> float:
    """From 0 (sharp) to 1 of a grey picture [h, w]: the share of the absolute steps between neighbours that
    stays when the picture is smoothed over `size` pixels along them; the larger of both directions. 1 where
    nothing is shown."""
    found = []
    for picture in (grey, grey.T):
        wide = np.pad(picture.astype(np.float64), ((0, 0), (size // 2 + 1, size // 2)), mode="edge")
        sums = np.cumsum(wide, 1)
        smooth = (sums[:, size:] - sums[:, :-size]) / size
        steps, left = np.abs(np.diff(picture, axis=1)), np.abs(np.diff(smooth, axis=1))
        total = float(steps.sum())
        if total > 0:
            found.append(1 - float(np.maximum(steps - left, 0).sum()) / total)
    return max(found, default=1.0)


def agreement(actions: list[dict[str, Any]], caption: list[dict[str, Any]], seconds: float) -> float:
    """The share of moments (10 a second, each hand) in which C5 sees work and the caption names a verb of the
    same kind; 1 where there is none."""
    moments = np.arange(0, seconds, 0.1)
    same = busy = 0
    for hand in SIDES:
        seen, said = (_kinds(rows, hand, moments) for rows in (actions, caption))
        at_work = np.array([kind not in (None, "still") for kind in seen], bool)
        busy += int(at_work.sum())
        same += sum(one == two for one, two, work in zip(seen, said, at_work, strict=True) if work)
    return same / busy if busy else 1.0


def _kinds(rows: list[dict[str, Any]], hand: str, moments: F64) -> list[str | None]:
    found: list[str | None] = [None] * len(moments)
    for row in rows:
        if row["hand"] in (hand, "both"):
            for at in np.flatnonzero((moments >= row["t0"]) & (moments < row["t1"])).tolist():
                found[at] = KINDS.get(row["verb"])
    return found


def logistic(value: float, middle: float, width: float) -> float:
    """From 0 to 1 about `middle`."""
    return float(1 / (1 + np.exp(-np.clip((value - middle) / width, -60, 60))))


def score(measures: Mapping[str, float]) -> dict[str, float]:
    """The sub-scores; their product is q."""
    dark = min(measures["brightness"] - 25, 230 - measures["brightness"])
    return {
        "sharp": logistic(measures["sharpness"], 40, 15) * logistic(0.35 - measures["blur"], 0, 0.02),
        "exposure": logistic(dark, 5, 5),
        "hands": logistic(measures["visible"], 0.4, 0.08),
        "track": logistic(0.2 - measures["lost"], 0, 0.04) * logistic(2.5 - measures["rms_px"], 0, 0.3),
        "action": logistic(measures["busy"], 0.05, 0.02),
        "caption": logistic(measures["agreement"], AGREEMENT, 0.06),
    }


def reason(m: Mapping[str, float], limits: Mapping[str, float]) -> str | None:
    """Which rule drops a clip with these measures, if any."""
    rules = (
        ("short", m["seconds"] < limits["seconds"]),
        ("dark", not limits["darkest"] <= m["brightness"] <= limits["brightest"]),
        ("static", m["motion"] < limits["motion"]),
        ("blurred", m["sharpness"] < limits["sharpness"] or m["blur"] > limits["blur"]),
        ("no-hands", m["visible"] < limits["visible"]),
        ("lost", m["lost"] > limits["lost"]),
        ("rms", m["rms_px"] > limits["rms_px"]),
        ("scale", m["metric"] < limits["metric"]),
        ("caption", m["agreement"] < limits["agreement"]),
        ("score", m["q"] < limits["least"]),
    )
    return next((name for name, bad in rules if bad), None)


def run(clip: Clip, out: Path) -> Outcome:
    """Writes `quality.json`: measures, sub-scores, q."""
    limits = dict(THRESHOLDS)
    for name, value in clip.settings.items():
        if name not in limits:
            raise unknown_name("threshold", name, limits, field="settings")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"[c7-filter] {name}={value} is no number.", field=name, given=value)
        limits[name] = float(value)
    data = ClipData.read(clip.path, clip.manifest)
    seconds = float(data.t_ns[-1] - data.t_ns[0]) * 1e-9
    small = [shrink(picture) for at, picture in enumerate(data.pictures()) if at % 5 == 0]
    tracked = json.loads((clip.stages["c3-trajectory"] / METRICS).read_text(encoding="utf-8"))["metrics"]
    tracks = read_tracks(clip.stages["c2-calibration"], len(data.t_ns))
    with np.load(clip.stages["c4-hands"] / HANDS) as file:
        visible = float(file["valid"].any(1).mean())
    actions = msgspec.json.decode((clip.stages["c5-actions"] / ACTIONS).read_bytes())
    caption = clip.record("c6-captions", CAPTION)
    busy = sum(row["t1"] - row["t0"] for row in actions if row["verb"] not in ("idle", "hold"))
    measures = {
        **{"seconds": seconds, "brightness": float(np.mean([image.mean() for image in small]))},
        **{"motion": motion(tracks, data.working[1], (len(data.t_ns) - 1) / max(seconds, 1e-9))},
        **{"sharpness": float(np.mean([sharpness(image) for image in small])), "visible": visible},
        **{"blur": float(np.mean([blur_effect(image) for image in small]))},
        **{"lost": float(tracked["lost"]), "rms_px": float(tracked["rms_px"])},
        **{"metric": float(tracked["scale_source"] != "none"), "busy": busy / max(2 * seconds, 1e-9)},
        "agreement": agreement(actions, caption["actions"], seconds),
    }
    parts = score(measures)
    measures["q"] = float(np.prod(list(parts.values())))
    why = reason(measures, limits)
    record = {"measures": measures, "scores": parts, "limits": limits, "drop": why}
    (out / QUALITY).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return Outcome({**{name: round(value, 5) for name, value in measures.items()}}, why)


STAGE = Stage("c7-filter", "2", run)
