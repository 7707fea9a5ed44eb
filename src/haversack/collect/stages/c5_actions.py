"""C5, atomic actions: where one movement of a hand ends and the next begins, and what each is called.

Paper: AoE (arXiv 2602.23893), whose successor localizes atomic actions in time; the method is [inferred].

People move a hand from one place to another in strokes of least jerk (Flash and Hogan, 1985), and an action
is a stroke or a rest. So per hand, optimal partitioning: F(t) = min_s F(s) + C(s, t) + beta, where C is the
squared distance of wrist and closing from the best stroke of least jerk over [s, t) (a rest is one that goes
nowhere), over the square of their noise; beta = 2 log n, segments of 0.4 to 6 s. The noise is taken from the
hand itself. Then rules name a segment: closing is grasp, opening is release; holding and upward is lift,
level transport, downward place, to and fro wipe, tilted by 60 degrees pour, still hold; empty and moving is
reach, else idle.

What we changed: the cost is a stroke's, not that of a level, so that boundaries lie where a movement begins
and none is cut in two by its own speed; nothing need snap to the slowest moment then. Contact is a closed
hand, since objects are not detected. Limits: no push, pull, cut, insert, press, which a caption's author may
use. Cost: some ten microseconds a frame and length that is tried.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._stages import Clip, Outcome, Stage
from haversack.collect.stages.c4_hands import HANDS, smoothed

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
SYSTEM = 1
ACTIONS = "actions.json"
VERBS = (
    *("reach", "grasp", "lift", "transport", "place", "release", "push", "pull", "rotate", "pour", "insert"),
    *("wipe", "cut", "press", "hold", "idle"),
)
SIDES = ("left", "right")
SHORTEST_S, LONGEST_S, PAUSE_S = 0.4, 6.0, 0.5
STILL = ("idle", "hold")
BETA = 2.0
"""Of a boundary, in log n."""
NOISE, APART = 2.5, 4
"""How many times its noise a signal may miss a stroke, since neighbouring frames err alike; the noise is what
frames APART miss the middle of their neighbours by."""
LEAST_M, LEAST_CLOSED = 0.006, 0.05
"""The least that counts as noise, of the wrist (m) and of closing."""
SMOOTH, SLIGHT = 3.0, 1.0
"""Sigma in frames of the wrist's path and of closing, for names and for boundaries."""
CLOSED = 2.1
"""Sum of a finger's three flexions that counts as closed, rad."""


@dataclass(frozen=True)
class Segment:
    """From `begin` to `end` (frames, exclusive), what the hand does, and how sure the rules are."""

    begin: int
    end: int
    verb: str
    confidence: float


# ---- the maths


def stroke(n: int) -> F64:
    """How far a stroke of least jerk has come at n moments, 0 to 1."""
    s = np.linspace(0.0, 1.0, n)
    return np.asarray(s**3 * (10 - 15 * s + 6 * s * s), np.float64)


def stroke_costs(x: F64, shortest: int, longest: int) -> F64:
    """Squared distance [longest - shortest + 1, n] of `x` [n, k] from its best stroke over each length (rows)
    from each begin (columns); infinite where that does not fit."""
    n = len(x)
    sums = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, 0)])
    squares = np.concatenate([[0.0], np.cumsum((x**2).sum(1))])
    found = np.full((longest - shortest + 1, n), np.inf)
    for length in range(shortest, min(longest, n) + 1):
        form = stroke(length)
        form = (form - form.mean()) / np.linalg.norm(form - form.mean())
        level = ((sums[length:] - sums[:-length]) ** 2).sum(1) / length
        along = np.lib.stride_tricks.sliding_window_view(x, length, axis=0) @ form
        found[length - shortest, : n - length + 1] = (
            squares[length:] - squares[:-length] - level - (along**2).sum(1)
        )
    return found


def partition(costs: F64, beta: float, shortest: int) -> list[int]:
    """Boundaries 0 < b < n of the segments with the least sum of `costs` (as stroke_costs has them) and
    `beta` for each boundary."""
    n = costs.shape[1]
    best, last = np.full(n + 1, np.inf), np.zeros(n + 1, np.int64)
    best[0] = 0.0
    for t in range(shortest, n + 1):
        lengths = np.arange(shortest, min(shortest + len(costs) - 1, t) + 1)
        total = best[t - lengths] + costs[lengths - shortest, t - lengths] + beta
        at = int(total.argmin())
        best[t], last[t] = total[at], t - lengths[at]
    found, t = [], n
    while t > 0 and last[t] > 0:
        t = int(last[t])
        found.append(t)
    return found[::-1]


def noise_of(x: F64, least: float) -> float:
    """The noise of a signal [n, k] at rest: how far frames are from the middle of those APART before and
    after."""
    if len(x) <= 2 * APART:
        return least
    off = np.abs(x[APART:-APART] - (x[: -2 * APART] + x[2 * APART :]) / 2)
    return float(max(least, NOISE * 1.4826 * np.median(off) / np.sqrt(1.5)))


def closing(angles: F64) -> F64:
    """How closed a hand is [n]: mean flexion of the four long fingers over CLOSED, 0 to about 1.3."""
    return np.asarray(angles.reshape(-1, 5, 4)[:, 1:, 1:].sum(2).mean(1) / CLOSED, np.float64)


def segments(world: F64, angles: F64, turn: F64, valid: Bool, fps: float) -> list[Segment]:
    """The actions of one hand: joints [n, 21, 3] in the world, angles [n, 20], the wrist's turn [n, 3, 3]; a
    frame that is not valid belongs to no action."""
    found: list[Segment] = []
    edges = np.flatnonzero(np.diff(np.concatenate([[0], valid.astype(np.int8), [0]])))
    shortest, longest = max(3, round(SHORTEST_S * fps)), round(LONGEST_S * fps)
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if end - begin < shortest:
            continue
        part = slice(begin, end)
        all_ = np.ones(end - begin, bool)
        place, grip = smoothed(world[part, 0], all_, SLIGHT), smoothed(closing(angles[part]), all_, SLIGHT)
        scaled = [place / noise_of(place, LEAST_M), (grip / noise_of(grip[:, None], LEAST_CLOSED))[:, None]]
        costs = stroke_costs(np.concatenate(scaled, 1), shortest, longest)
        bounds = partition(costs, BETA * float(np.log(end - begin)), shortest)
        wrist, closed = smoothed(world[part, 0], all_, SMOOTH), smoothed(closing(angles[part]), all_, SMOOTH)
        open_, shut = float(np.quantile(closed, 0.1)), float(np.quantile(closed, 0.9))
        middle = (open_ + shut) / 2 if shut - open_ > 0.15 else 0.3
        own: list[Segment] = []
        for one, two in zip([0, *bounds], [*bounds, end - begin], strict=True):
            inside = slice(one, two)
            name, sure = label(wrist[inside], closed[inside], middle, turn[part][inside], fps)
            own.append(Segment(begin + one, begin + two, name, sure))
        found += rubbed(own, world[:, 0], fps)
    return joined(found, round(PAUSE_S * fps))


def rubbed(found: list[Segment], wrist: F64, fps: float) -> list[Segment]:
    """Three or more strokes with something in the hand that go to and fro are one wipe."""
    made: list[Segment] = []
    at = 0
    while at < len(found):
        end = at
        while end < len(found) and found[end].verb in ("transport", "wipe"):
            end += 1
        if end - at >= 3 and _cyclic(wrist[found[at].begin : found[end - 1].end], fps):
            made.append(Segment(found[at].begin, found[end - 1].end, "wipe", 0.7))
            at = end
        else:
            made.append(found[at])
            at += 1
    return made


def label(wrist: F64, closed: F64, middle: float, turn: F64, fps: float) -> tuple[str, float]:
    """The verb of a segment, and a confidence in (0, 1]."""
    change = float(closed[-1] - closed[0])
    moved = wrist[-1] - wrist[0]
    held = float(closed.mean()) > max(middle, 0.3)
    path = float(np.linalg.norm(wrist - wrist[0], axis=1).max())
    if abs(change) > 0.22 and np.linalg.norm(moved) < 0.06:
        return ("grasp" if change > 0 else "release"), min(1.0, abs(change) * 2)
    if held:
        if _tilt(turn) > 60:
            return "pour", 0.6
        if path < 0.02:
            return "hold", 0.7
        if _cyclic(wrist, fps):
            return "wipe", 0.7
        up, level = float(moved[2]), float(np.linalg.norm(moved[:2]))
        if abs(up) > level:
            return ("lift" if up > 0 else "place"), min(1.0, abs(up) / (abs(up) + level))
        return "transport", level / (abs(up) + level + 1e-9)
    if path < 0.03:
        return "idle", 0.8
    return "reach", min(1.0, path / 0.1)


def _tilt(turn: F64) -> float:
    """Degrees between the palm's normal and the vertical, at most, whichever way it faces."""
    up = np.abs(turn[:, 2, 2])
    return float(np.degrees(np.arccos(np.clip(up.min(), -1, 1))))


def _cyclic(wrist: F64, fps: float) -> bool:
    """Whether the strongest horizontal motion repeats within 0.3 to 2 s (autocorrelation above 0.5)."""
    if len(wrist) < fps:
        return False
    flat = wrist[:, :2] - wrist[:, :2].mean(0)
    if np.linalg.norm(flat[-1] - flat[0]) > 0.5 * np.linalg.norm(np.diff(flat, axis=0), axis=1).sum():
        return False  # it goes somewhere
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    x = np.diff(flat @ axes[0])
    power = float(x @ x)
    lags = range(round(0.3 * fps), min(len(x) // 2, round(2 * fps)))
    return power > 1e-6 and any(float(x[lag:] @ x[:-lag]) > 0.5 * power * (1 - lag / len(x)) for lag in lags)


def joined(found: list[Segment], pause: int) -> list[Segment]:
    """Without pauses shorter than `pause` rows between two strokes, which meet in its middle; neighbours of
    one verb are one, but for reaching, which may go there and back."""
    made: list[Segment] = []
    for at, each in enumerate(found):
        between = (
            0 < at < len(found) - 1 and each.begin == found[at - 1].end and each.end == found[at + 1].begin
        )
        if each.verb in STILL and between and each.end - each.begin < pause and made:
            middle = (each.begin + each.end) // 2
            before = made.pop()
            made.append(Segment(before.begin, middle, before.verb, before.confidence))
            following = found[at + 1]
            found[at + 1] = Segment(middle, following.end, following.verb, following.confidence)
            continue
        if made and made[-1].end == each.begin and made[-1].verb == each.verb and each.verb != "reach":
            made[-1] = Segment(made[-1].begin, each.end, each.verb, max(made[-1].confidence, each.confidence))
        else:
            made.append(each)
    return made


def run(clip: Clip, out: Path) -> Outcome:
    """Writes `actions.json`: rows of t0, t1 (s from the first frame), hand, verb, confidence."""
    with np.load(clip.stages["c4-hands"] / HANDS) as file:
        t_ns, world, angles, turn, valid = (file[k] for k in ("t_ns", "world", "angles", "turn", "valid"))
    seconds = (t_ns - t_ns[0]) * 1e-9
    fps = (len(seconds) - 1) / max(float(seconds[-1]), 1e-9)
    rows: list[dict[str, Any]] = []
    for side in (0, 1):
        for each in segments(world[:, side], angles[:, side], turn[:, side], valid[:, side], fps):
            end = float(seconds[each.end]) if each.end < len(seconds) else float(seconds[-1])
            rows.append(
                {
                    **{"t0": float(seconds[each.begin]), "t1": end, "hand": SIDES[side]},
                    **{"verb": each.verb, "conf": round(each.confidence, 3)},
                }
            )
    rows = [row for row in rows if row["t1"] > row["t0"]]
    rows.sort(key=lambda row: (row["t0"], row["hand"]))
    (out / ACTIONS).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    busy = sum(row["t1"] - row["t0"] for row in rows if row["verb"] not in ("idle", "hold"))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["verb"]] = counts.get(row["verb"], 0) + 1
    return Outcome({"actions": len(rows), "busy": busy / max(2 * float(seconds[-1]), 1e-9), "verbs": counts})


STAGE = Stage("c5-actions", "1", run)
