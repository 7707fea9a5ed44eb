"""Filtering with planted faults, and a policy trained on what is left: through every stage and the export.

Clips of the room, 30 % of them planted: out of focus, no hands, one picture all the time, the same clip
again, a caption of another clip. The policy (an MLP of about 50,000 parameters) sees both wrists and grips of
the last 0.27 s and predicts where they will be in 0.5 s, from the current place; it is judged on the truth of
rooms and people that no training clip has. Curated, uncurated (a draw of all clips, before filter and
deduplication, of as many frames) and truth-labelled (the curated clips, the renderer's hands) are trained
alike: steps, seeds, width. More data: a quarter, a half and all of the curated frames.

Captions of another clip are given as files, as a captioner's answers are; all others are the built-in
author's. Those agree with their clip whatever the threshold, so it is also judged by captions of somebody who
knows: the renderer's actions, of the clip itself and of every other one.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.aoe._bench import bench
from haversack.bench.aoe._clips import Planted, Shelf
from haversack.bench.aoe._scene import Scene
from haversack.bench.aoe._world import FPS
from haversack.bench.aoe.vision import WATCHED as VISION
from haversack.bench.aoe.vision import process_here

F64 = npt.NDArray[np.float64]
GOOD, SECONDS = 21, 6.0
FAULTS = ("blur", "no hands", "frozen", "duplicate", "caption", "blur", "no hands", "frozen", "caption")
PAST, AHEAD = 4, 8
"""Frames: four before the present one, and half a second on."""
SEEDS, STEPS = 3, 1500
WATCHED = (
    *VISION,
    "bench/aoe/curate.py",
    "collect/stages/*.py",
    "collect/_captioner.py",
    "collect/export.py",
)

BAD = Row("bad-clips", "planted bad clips that are found", "share", "quality", Bar(">=", 0.9), "ours")
FALSE = Row("false-drops", "good clips that are dropped", "share", "quality", Bar("<=", 0.05), "ours")
OTHERS = Row(
    "other-captions",
    "captions of another clip, the renderer's, that the filter finds",
    "share",
    "quality",
    Bar(">=", 0.9),
    "ours",
)
OWN = Row(
    "own-captions",
    "the renderer's own captions that the filter takes for another clip's",
    "share",
    "quality",
    Bar("<=", 0.05),
    "ours",
)
CURATED = Row(
    "curated", "policy error, curated over uncurated data of equal size", "ratio", "quality", Bar("<=", 0.8)
)
TRUTH = Row(
    "against-truth", "policy error, curated over truth-labelled data", "ratio", "quality", Bar("<=", 1.25)
)
MORE = Row(
    "more-data", "policy error falls over 1/4, 1/2, 1x of the data", "yes", "quality", Bar("==", 1.0), "ours"
)


@dataclass
class Fields:
    """What the stages made of a clip: positions [n, 2, 3] and grips [n, 2], and which are known."""

    wrist: F64
    grip: F64
    known: npt.NDArray[np.bool_]


@bench.measure(BAD, FALSE, OTHERS, OWN, CURATED, TRUTH, MORE, seconds=500, watches=WATCHED)
def clips(run: Run) -> Outcomes:
    """Thirty clips of six seconds."""
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder, "store"))
        planted = plant(shelf, run.seed)
        shelf.close()
        reasons = filtered(shelf.root, planted)
        bad = [each for each in planted if each.wrong]
        good = [each for each in planted if not each.wrong]
        found = sum(reasons[each.clip] is not None for each in bad)
        lost = sum(reasons[each.clip] is not None for each in good)
        missed = sorted(each.wrong for each in bad if reasons[each.clip] is None)
        told = sorted(str(reasons[each.clip]) for each in good if reasons[each.clip])
        outcomes: dict[str, Outcome | Unavailable] = {
            BAD.id: Outcome.single(
                found / len(bad), note=f"{len(bad)} planted; missed: {', '.join(missed) or 'none'}"
            ),
            FALSE.id: Outcome.single(
                lost / len(good), note=f"{len(good)} good clips; dropped: {', '.join(told) or 'none'}"
            ),
        }
        outcomes |= renderers_captions(shelf.root, good)
        kept = [each for each in planted if reasons[each.clip] is None]
        try:
            return {**outcomes, **policies(shelf.root, planted, kept, run.seed)}
        except Unavailable as error:
            return {**outcomes, **dict.fromkeys((CURATED.id, TRUTH.id, MORE.id), error)}


def plant(shelf: Shelf, seed: int) -> list[Planted]:
    """Good clips and bad ones; each of three people in seven rooms."""

    def scene(at: int, **how: Any) -> Scene:
        return Scene(seed + at, SECONDS, person=seed + at % 3, phone=at % 2, room=seed + at % 7, **how)

    found = [shelf.put(scene(at)) for at in range(GOOD)]
    for at, wrong in enumerate(FAULTS):
        if wrong == "duplicate":
            found.append(Planted(shelf.put(found[at].scene, crf=24).clip, found[at].scene, wrong))
        else:
            made = scene(GOOD + at, hands=wrong != "no hands")
            how = wrong if wrong in ("blur", "frozen") else ""
            found.append(Planted(shelf.put(made, wrong=how).clip, made, wrong))
    return found


def filtered(root: Path, planted: list[Planted]) -> dict[str, str | None]:
    """Why each clip is left out (None: it is not), captions of another clip in the place of some."""
    from haversack.collect._books import Books
    from haversack.collect.export import Exported, curated, passed

    before = ("c1-ingest", "c2-calibration", "c3-trajectory", "c4-hands", "c5-actions", "c6-captions")
    process_here(root, before)
    captions = root.parent / "captions"
    captions.mkdir()
    written = {each.clip: root / "stages" / each.clip / "c6-captions@1" / "caption.json" for each in planted}
    good = [each.clip for each in planted if not each.wrong and written[each.clip].is_file()]
    for at, each in enumerate(planted):
        source = written[each.clip]
        if each.wrong == "caption":
            source = written[good[at % len(good)]]
        if source.is_file():
            (captions / f"{each.clip}.json").write_bytes(source.read_bytes())
    (root / "pipeline.toml").write_text(
        f"[c6-captions]\njson = '{captions}/{{clip}}.json'\n", encoding="utf-8"
    )
    process_here(root)
    books = Books(root)
    rows = books.rows("SELECT clip, drop_reason FROM jobs WHERE drop_reason IS NOT NULL")
    reasons: dict[str, str | None] = {each.clip: None for each in planted}
    reasons |= {str(row["clip"]): str(row["drop_reason"]) for row in rows}
    left = {one.manifest.clip_uuid for one in curated(passed(root, books), Exported(""), hours=None, eps=0.1)}
    books.close()
    # of a clip and its twin one stays, whichever it is
    twins = {each.scene.seed: each.clip for each in planted if each.wrong == "duplicate"}
    for each in planted:
        if reasons[each.clip] is None and each.clip not in left:
            twin = twins.get(each.scene.seed)
            where = twin if twin is not None and not each.wrong and twin in left else each.clip
            reasons[where] = "duplicate"
    return reasons


def renderers_captions(root: Path, good: list[Planted]) -> Outcomes:
    """What C7's threshold makes of the renderer's actions as captions, of the clip itself and of others."""
    import json

    from haversack.collect.stages.c5_actions import SIDES
    from haversack.collect.stages.c7_filter import THRESHOLDS, agreement

    seen, told = [], []
    for each in good:
        path = root / "stages" / each.clip / "c5-actions@1" / "actions.json"
        if path.is_file():
            seen.append(json.loads(path.read_text(encoding="utf-8")))
            told.append(
                [
                    {"t0": action.t0, "t1": action.t1, "hand": SIDES[action.hand], "verb": action.verb}
                    for action in each.scene.actions
                ]
            )
    found = np.array([[agreement(one, other, SECONDS) for other in told] for one in seen])
    least, same = THRESHOLDS["agreement"], np.eye(len(found), dtype=bool)
    note = (
        f"{len(found)} clips; agreement {np.median(found[same]):.2f} with the clip's own and "
        f"{np.median(found[~same]):.2f} with another's in the median, the threshold is {least:g}"
    )
    return {
        OTHERS.id: Outcome.single(float((found[~same] < least).mean()), note=note),
        OWN.id: Outcome.single(float((found[same] < least).mean()), note=note),
    }


# ---- the policy


def policies(root: Path, planted: list[Planted], kept: list[Planted], seed: int) -> Outcomes:
    """The three rows of the policy."""
    try:
        import torch
    except ImportError as error:
        raise Unavailable("needs PyTorch: pip install 'haversack[workshop]'") from error
    torch.set_num_threads(1)
    unseen = [Scene(seed + 900 + at, SECONDS, person=seed + 50 + at, room=seed + 70 + at) for at in range(6)]
    test = windows([true_fields(scene) for scene in unseen])
    made = {each.clip: stage_fields(root, each.clip) for each in planted}
    ours = windows([made[each.clip] for each in kept])
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(planted))
    raw = windows([made[planted[int(at)].clip] for at in order], unknown=True)
    count = min(len(ours[0]), len(raw[0]))
    truth = windows([true_fields(each.scene) for each in kept])

    def off(data: tuple[F64, F64], most: int) -> tuple[float, ...]:
        chosen = np.random.default_rng(1).permutation(len(data[0]))[:most]
        return tuple(trained(data[0][chosen], data[1][chosen], test, at) for at in range(SEEDS))

    curated, uncurated = off(ours, count), off(raw, count)
    labelled = off(truth, count)
    quarter, half = off(ours, count // 4), off(ours, count // 2)
    falls = float(np.median(quarter)) > float(np.median(half)) > float(np.median(curated))
    note = f"{count} windows each; mean distance of wrists in 0.5 s, mm, {SEEDS} seeds"
    sizes = ", ".join(f"{float(np.median(part)):.1f}" for part in (quarter, half, curated))
    return {
        CURATED.id: Outcome(Side("curated", curated), Side("uncurated", uncurated), note),
        TRUTH.id: Outcome(Side("curated", curated), Side("truth", labelled), note),
        MORE.id: Outcome.single(float(falls), note=f"mm over 1/4, 1/2, 1: {sizes}"),
    }


def stage_fields(root: Path, clip: str) -> Fields:
    """The hands of a clip as the stages have them; none where they did not come so far."""
    path = root / "stages" / clip / "c4-hands@1" / "hands.npz"
    if not path.is_file():
        n = round(SECONDS * FPS)
        return Fields(np.zeros((n, 2, 3)), np.zeros((n, 2)), np.zeros((n, 2), bool))
    with np.load(path) as file:
        return Fields(
            file["world"][:, :, 0] * file["valid"][..., None], file["grip"] * file["valid"], file["valid"]
        )


def true_fields(scene: Scene) -> Fields:
    """The same as the renderer has them."""
    from haversack.collect._hand_model import grip

    t = scene.times() * 1e-9
    if not scene.hands:
        return Fields(np.zeros((len(t), 2, 3)), np.zeros((len(t), 2)), np.zeros((len(t), 2), bool))
    hands: F64 = np.asarray([[scene.hand(x, side) for side in (0, 1)] for x in t], np.float64)
    return Fields(hands[:, :, 0], grip(hands), np.ones((len(t), 2), bool))


def windows(clips: list[Fields], *, unknown: bool = False) -> tuple[F64, F64]:
    """Inputs [m, 5, 4] (a wrist's place from the present one in units of 0.1 m, its grip) and targets [m, 4],
    of each hand; `unknown` also takes frames in which the hand is not known, as a set that nobody curated
    has them."""
    x, y = [], []
    for clip in clips:
        for side in (0, 1):
            for at in range(PAST, len(clip.wrist) - AHEAD):
                past = slice(at - PAST, at + 1)
                if not unknown and not (clip.known[past, side].all() and clip.known[at + AHEAD, side]):
                    continue
                here = clip.wrist[at, side]
                moves = (clip.wrist[past, side] - here) / 0.1
                x.append(np.concatenate([moves, clip.grip[past, side, None]], 1))
                goal = (clip.wrist[at + AHEAD, side] - here) / 0.1
                y.append(np.append(goal, clip.grip[at + AHEAD, side]))
    return np.asarray(x, np.float64).reshape(-1, PAST + 1, 4), np.asarray(y, np.float64).reshape(-1, 4)


def trained(x: F64, y: F64, test: tuple[F64, F64], seed: int) -> float:
    """Train a policy; the mean distance of its wrists from the truth's on `test`, mm."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    width = 190
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(4 * (PAST + 1), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, 4),
    )
    given, goal = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-3)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(given), (128,), generator=draws)
        loss = nn.functional.mse_loss(model(given[chosen]), goal[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model(torch.from_numpy(test[0]).float()).numpy()
    return float(100 * np.linalg.norm(found[:, :3] - test[1][:, :3], axis=1).mean())
