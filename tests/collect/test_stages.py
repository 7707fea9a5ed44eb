"""Actions, captions, filter, deduplication: each against what it must say."""

from __future__ import annotations

import itertools
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from haversack.bench.aoe._scene import Scene
from haversack.bench.aoe._world import FPS
from haversack.collect import _captioner as captioner
from haversack.collect._stages import SETTINGS, load_stages, read_settings
from haversack.collect.stages import c5_actions as c5
from haversack.collect.stages import c7_filter as c7
from haversack.collect.stages import c8_embedding as c8
from haversack.core.errors import UserError


def test_strokes_are_found_where_they_begin_and_end():
    rng = np.random.default_rng(0)
    rest, there, back = (
        np.zeros((20, 2)),
        c5.stroke(25)[:, None] * [8.0, 0],
        c5.stroke(15)[:, None] * [-8.0, 5],
    )
    far, up = np.array([8.0, 0.0]), np.array([0.0, 5.0])
    rows = np.concatenate([rest, there, rest + far, far + back, rest + up])
    costs = c5.stroke_costs(rows + rng.normal(0, 0.2, rows.shape), 5, 60) / 0.2**2
    found = c5.partition(costs, 4 * np.log(100), 5)
    assert len(found) == 4 and np.abs(np.array(found) - [20, 45, 65, 80]).max() <= 3
    assert c5.partition(c5.stroke_costs(rng.normal(0, 1, (55, 2)), 5, 60), 4 * np.log(55), 5) == []


def test_the_partition_is_the_best_of_all():
    """Beside every way to part a short signal, and least squares for each part."""
    rng = np.random.default_rng(1)
    x, shortest, longest, beta = np.cumsum(rng.normal(0, 1, (13, 2)), 0), 3, 8, 1.5

    def cost(part):
        A = np.stack([np.ones(len(part)), c5.stroke(len(part))], 1)
        return float(((part - A @ np.linalg.lstsq(A, part, rcond=None)[0]) ** 2).sum())

    ways = []
    for chosen in range(2**12):
        cuts = [at + 1 for at in range(12) if chosen >> at & 1]
        ends = [0, *cuts, 13]
        sizes = np.diff(ends)
        if sizes.min() >= shortest and sizes.max() <= longest:
            total = sum(cost(x[a:b]) for a, b in itertools.pairwise(ends)) + beta * len(ends[1:])
            ways.append((total, cuts))
    assert c5.partition(c5.stroke_costs(x, shortest, longest), beta, shortest) == min(ways)[1]


@pytest.mark.parametrize(("shake_m", "shake"), [(0.0, 0.0), (0.006, 0.05)])
def test_actions_of_hands_have_their_boundaries_and_names(shake_m, shake):
    """Of true hands, and of hands that shake as found ones do: errors of neighbouring frames are alike."""
    rng = np.random.default_rng(4)

    def shaken(n):
        kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2.0) ** 2)
        return np.convolve(rng.normal(0, 1, n + 16), kernel / np.linalg.norm(kernel), "valid")

    hit = found_count = true_count = named = 0
    for seed in (200, 201):
        scene = Scene(seed, 12.0, person=seed)
        t = np.arange(round(12 * FPS)) / FPS
        for side in (0, 1):
            world = np.stack([scene.hand(x, side) for x in t])
            closed = np.array([scene.wrist(x, side)[1] for x in t]) + shake * shaken(len(t))
            world += shake_m * np.stack([shaken(len(t)) for _ in range(3)], 1)[:, None]
            angles = np.zeros((len(t), 5, 4))
            angles[:, :, 1:] = np.radians([[25, 40, 35], *[[62, 75, 40]] * 4]) * closed[:, None, None]
            turn = np.tile(np.eye(3), (len(t), 1, 1))
            parts = c5.segments(world, angles.reshape(len(t), 20), turn, np.ones(len(t), bool), FPS)
            truth = [action for action in scene.actions if action.hand == side]
            bounds = [part.begin / FPS for part in parts[1:]]
            true = [action.t0 for action in truth[1:]]
            hit += sum(any(abs(b - x) <= 0.3 for b in bounds) for x in true)
            found_count, true_count = found_count + len(bounds), true_count + len(true)
            for part in parts:
                middle = (part.begin + part.end) / 2 / FPS
                named += any(a.t0 <= middle < a.t1 and a.verb == part.verb for a in truth)
    assert 2 * hit / (found_count + true_count) > (0.85 if shake else 0.9)
    assert named > (0.7 if shake else 0.8) * (found_count + 4)


def test_wiping_is_to_and_fro_and_a_frame_without_a_hand_has_no_action():
    t = np.arange(60) / 15
    wrist = np.zeros((60, 21, 3))
    wrist[..., 0] = 0.08 * np.sin(2 * np.pi * 1.2 * t)[:, None]
    closed = np.tile(np.array([0, 0.8, 0.8, 0.5]), (60, 5)).astype(float)
    valid = np.ones(60, bool)
    valid[:20] = False
    found = c5.segments(wrist, closed, np.tile(np.eye(3), (60, 1, 1)), valid, 15.0)
    assert {part.verb for part in found} == {"wipe"} and found[0].begin == 20


# captions

FRAMES = np.arange(90) / 15


def caption(**changes):
    row = {"t0": 0.0, "t1": 1.0, "hand": "left", "verb": "reach"}
    given = {"task": "reach", "objects": [], "actions": [row], **changes}
    return json.dumps(given)


def test_a_caption_in_a_fence_is_read_and_its_times_are_put_on_frames():
    row = {"t0": 0.01, "t1": 1.04, "hand": "both", "verb": "lift", "object": "cup", "conf": 0.5}
    found = captioner.checked(f"```json\n{caption(actions=[row])}\n```", FRAMES)
    assert found.actions[0].t0 == 0.0 and found.actions[0].t1 == pytest.approx(16 / 15)


@pytest.mark.parametrize(
    "wrong",
    [
        "I cannot see anything.",
        "{",
        caption(task=" "),
        caption(more=1),
        caption(actions=[{"t0": 0, "t1": 9.0, "hand": "left", "verb": "reach"}]),
        caption(actions=[{"t0": 2, "t1": 1, "hand": "left", "verb": "reach"}]),
        caption(actions=[{"t0": 0, "t1": 1, "hand": "foot", "verb": "reach"}]),
        caption(actions=[{"t0": 0, "t1": 1, "hand": "left", "verb": "fly"}]),
        caption(actions=[{"t0": 0, "t1": 1, "hand": "left", "verb": "reach", "conf": 7}]),
        caption(
            actions=[{"t0": a, "t1": a + 2, "hand": h, "verb": "hold"} for a, h in ((0, "both"), (1, "left"))]
        ),
        caption(actions=[{"t0": a, "t1": a + 1, "hand": "left", "verb": "hold"} for a in (3, 0)]),
        caption(task="x" * 301),
        "[" * 100_000,
    ],
)
def test_captions_that_do_not_hold(wrong):
    with pytest.raises(captioner.CaptionError):
        captioner.checked(wrong, FRAMES)


def test_the_built_in_author_s_caption_holds():
    rows = [
        {"t0": 0.0, "t1": 1.0, "hand": "right", "verb": "grasp", "conf": 0.9},
        {"t0": 1.0, "t1": 2.0, "hand": "right", "verb": "transport", "conf": 0.9},
        {"t0": 0.2, "t1": 2.0, "hand": "left", "verb": "idle", "conf": 0.8},
    ]
    rows.sort(key=lambda row: row["t0"])
    import msgspec

    made = captioner.template(rows, {"right": "blue object", "left": None})
    found = captioner.checked(msgspec.json.encode(made), FRAMES)
    assert found.task == "move the blue object with the right hand" and len(set(found.paraphrases)) == 10
    assert found.actions[0].text == "right hand grasps the blue object"


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((200, 30, 30), "red"), ((40, 80, 200), "blue"), ((20, 20, 22), "black"), ((60, 160, 70), "green")],
)
def test_colours_have_their_names(rgb, name):
    assert captioner.colour_name(np.array(rgb, float)) == name


def test_a_contact_sheet_is_a_jpeg_of_five_columns():
    import io

    import av

    shots = [np.full((90, 160, 3), 20 * at, np.uint8) for at in range(7)]
    with av.open(io.BytesIO(captioner.contact_sheet(shots)), format="jpeg_pipe") as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (180, 800, 3) and abs(float(picture[45, 400].mean()) - 40) < 6


class Model(BaseHTTPRequestHandler):
    """A vision model of a test: says what it is told to, in turn; None is silence."""

    answers: list
    asked: list

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body["messages"][0]["content"])
        said = self.answers[min(len(self.asked) - 1, len(self.answers) - 1)]
        if said is None:
            time.sleep(1.5)
            return
        data = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def model():
    handler = type("Told", (Model,), {"answers": [], "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def remote(endpoint, tmp_path):
    from bundles import make

    from haversack.collect._clip_data import ClipData
    from haversack.collect._stages import Clip
    from haversack.collect.bundle import Bundle
    from haversack.collect.stages.c6_captions import remote as ask

    bundle = Bundle.open(make(tmp_path, 30))
    settings = {"endpoint": endpoint, "model": "m", "timeout_s": 0.4}
    clip = Clip(bundle.path, bundle.manifest, settings=settings)
    return ask(clip, ClipData.read(bundle.path, bundle.manifest))


def test_nonsense_is_asked_about_once_more_with_the_complaint(model, tmp_path):
    handler, endpoint = model
    handler.answers[:] = ["dunno", caption()]
    assert remote(endpoint, tmp_path).task == "reach"
    assert len(handler.asked) == 2 and "no JSON object" in handler.asked[1][0]["text"]
    assert handler.asked[0][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("answer", ["dunno", None])
def test_a_captioner_that_answers_nonsense_or_never_is_asked_twice_and_no_more(model, tmp_path, answer):
    handler, endpoint = model
    handler.answers[:] = [answer]
    with pytest.raises(captioner.CaptionError):
        remote(endpoint, tmp_path)
    assert len(handler.asked) == 2


# filter and deduplication

GOOD = {
    **{"seconds": 6.0, "brightness": 110.0, "motion": 0.05, "sharpness": 600.0, "visible": 0.9, "lost": 0.0},
    **{"rms_px": 0.5, "metric": 1.0, "busy": 0.6, "agreement": 0.9, "q": 0.9, "blur": 0.25},
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"seconds": 1.5}, "short"),
        ({"brightness": 12.0}, "dark"),
        ({"motion": 0.0005}, "static"),
        ({"sharpness": 20.0}, "blurred"),
        ({"blur": 0.42}, "blurred"),
        ({"visible": 0.3}, "no-hands"),
        ({"lost": 0.3}, "lost"),
        ({"rms_px": 4.0}, "rms"),
        ({"metric": 0.0}, "scale"),
        ({"agreement": 0.1}, "caption"),
    ],
)
def test_each_rule_drops_what_it_is_for(change, why):
    measures = GOOD | change
    assert c7.reason(measures, c7.THRESHOLDS) == why
    q = np.prod(list(c7.score(measures).values()))
    assert (q > 0.8) == (why is None) or why in ("short", "static", "scale")


def test_the_blur_effect_is_of_the_focus_and_not_of_what_is_shown():
    """Boxes before boxes: sharp below the threshold, smoothed above, in any contrast; one hard edge
    as the formula says."""
    rng = np.random.default_rng(4)
    boxes = np.full((90, 160), 90.0)
    for _ in range(150):
        (y, x), (h, w) = rng.integers(0, (80, 150)), rng.integers(4, 30, 2)
        boxes[y : y + h, x : x + w] = rng.uniform(0, 255)
    limit = c7.THRESHOLDS["blur"]
    for picture in (boxes, 0.2 * boxes + 80):
        sharp = picture.astype(np.float32)
        soft = sharp
        for axis in (0, 1):
            soft = np.mean([np.roll(soft, by, axis) for by in range(-3, 4)], 0).astype(np.float32)
        assert c7.blur_effect(sharp) < limit < c7.blur_effect(soft), picture[0, :3]
    edge = np.zeros((90, 160), np.float32)
    edge[:, 80:] = 110.0
    assert c7.blur_effect(edge) == pytest.approx(1 / 11, abs=1e-6)  # 10 of eleven steps of 10 are new


def test_a_clip_compressed_again_is_alike_and_another_action_in_the_same_place_is_not():
    """A room with a thing that moves: the same in coarser steps, and the same room with another path."""
    rng = np.random.default_rng(5)
    room = rng.integers(0, 200, (18, 32, 3)).repeat(10, 0).repeat(10, 1)

    def film(path, step=1):
        found = []
        for x, y in path:
            picture = room.copy()
            picture[y : y + 60, x : x + 60] = (230, 160, 130)
            found.append((picture // step * step).astype(np.uint8))
        return found

    def vector(pictures):
        grids = [c8.cells(picture) for picture in pictures]
        parts = [np.stack(grids[::4]).ravel(), c8.directions(pictures[::4]), c8.changes(grids)]
        return c8.vector(parts)

    there = [(20 * at, 100) for at in range(c8.SHOTS)]
    back = [(240 - 20 * at, 10 * at) for at in range(c8.SHOTS)]
    one, again, other = vector(film(there)), vector(film(there, 8)), vector(film(back))
    assert len(one) == 1600
    assert one @ again > 0.95 > 0.9 > one @ other


def test_agreement_counts_moments_of_work_with_a_verb_of_the_same_kind():
    seen = [
        {"t0": 0.0, "t1": 2.0, "hand": "left", "verb": "transport"},
        {"t0": 2.0, "t1": 4.0, "hand": "left", "verb": "idle"},
    ]
    assert c7.agreement(seen, [{**seen[0], "verb": "push"}], 4.0) == 1.0
    assert c7.agreement(seen, [{**seen[0], "verb": "lift"}], 4.0) == 0.0
    assert c7.agreement(seen, [{**seen[0], "t1": 1.0}], 4.0) == pytest.approx(0.5)


def test_of_clips_that_are_alike_one_stays_and_comes_back_when_its_twin_is_gone():
    rng = np.random.default_rng(0)
    base = [[rng.normal(size=n) for n in (768, 64, 768)] for _ in range(6)]
    twin = [part + 0.05 * rng.normal(size=len(part)) for part in base[2]]
    vectors = np.stack([c8.vector(parts) for parts in [*base, twin]])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    kept = c8.chosen(vectors)
    assert sum(kept) == 6 and kept[2] != kept[6]
    assert all(c8.chosen(np.delete(vectors, 2, axis=0)))
    many = np.concatenate([vectors[:6], rng.normal(size=(300, vectors.shape[1]))])
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    many = np.concatenate([many, many[:40]])
    assert 306 <= sum(c8.chosen(many)) <= 306 + 4  # twins in one cluster, but for few


def test_a_budget_of_hours_is_spent_on_clips_that_differ():
    rng = np.random.default_rng(1)
    near = rng.normal(size=8) + 0.05 * rng.normal(size=(10, 8))
    far = rng.normal(size=(3, 8))
    vectors = np.concatenate([near, far])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = c8.spread(vectors, np.full(13, 10.0), 40.0)
    assert len(order) == 4 and {10, 11, 12} <= set(order)


# settings


def test_settings_give_a_stage_and_those_after_it_a_version_of_their_own(tmp_path):
    plain = {stage.name: stage.version for stage in load_stages()}
    assert list(plain) == sorted(plain) and len(plain) == 8
    (tmp_path / SETTINGS).write_text('[c6-captions]\nendpoint = "http://x/v1"\n')
    told = {stage.name: stage.version for stage in load_stages(None, read_settings(tmp_path))}
    changed = [name for name in plain if plain[name] != told[name]]
    assert changed == ["c6-captions", "c7-filter", "c8-embedding"]
    for text, why in (("[c6-caption]\nx=1", "c6-captions"), ("x = [", "TOML"), ("x = 1", "tables")):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(UserError, match=why):
            load_stages(None, read_settings(tmp_path))


def test_statements_are_said_in_the_other_database_s_dialect():
    from haversack.collect import _books
    from haversack.collect._postgres import Row, said, tables

    assert said("SELECT '5%' WHERE a = ?") == "SELECT '5%%' WHERE a = %s"
    assert said("INSERT OR IGNORE INTO t VALUES (?)") == "INSERT INTO t VALUES (%s) ON CONFLICT DO NOTHING"
    made = tables(_books._TABLES)
    assert not any(word in text for text in made for word in (" BLOB", " INTEGER", " REAL", "AUTOINCREMENT"))
    assert any(text.startswith("CREATE TABLE IF NOT EXISTS jobs (rowid BIGSERIAL, ") for text in made)
    row = Row.of(["a", "b"], [1, "x"])
    assert (row["b"], row[0], dict(row)) == ("x", 1, {"a": 1, "b": "x"})


def test_books_of_another_kind_are_refused_and_their_absence_is_worded(tmp_path):
    import importlib.util

    from haversack.collect._books import Books, name_database
    from haversack.core.errors import MissingExtraError

    with pytest.raises(UserError, match="no URL"):
        name_database(tmp_path, "mysql://x")
    name_database(tmp_path / "store", "postgresql://127.0.0.1:1/x?connect_timeout=1")
    assert (tmp_path / "store" / "books.url").stat().st_mode & 0o077 == 0
    absent = importlib.util.find_spec("psycopg") is None
    with pytest.raises(MissingExtraError if absent else UserError, match=r"psycopg|reached"):
        Books(tmp_path / "store")
    with pytest.raises(UserError, match="other books"):
        name_database(tmp_path / "store", "postgresql://other/x")
