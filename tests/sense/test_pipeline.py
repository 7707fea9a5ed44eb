"""The pipeline's parts and a window pushed by hand: known numbers, choices, clocks, and what sensors do
wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.models.streams._events import Recordings, make
from haversack.models.streams._folder import PHOTOS, bundled, read_photos
from haversack.models.streams._model import FAST, SLOW, StreamsModel
from haversack.sense import Config, PipelinedSession, Policy
from haversack.sense._pipeline_clock import FrameClock, SampleClock, check_skew
from haversack.sense._pipeline_policy import F64, FIRST_OVERRUN, decide, margin, moved
from haversack.sense._pipeline_profile import (
    StageProfile,
    TableProfile,
    finish_times,
    profile_text,
    read_profile,
)
from haversack.sense._pipeline_space import Space, read_accuracy_table, read_latency_table
from haversack.sense._pipeline_window import SenseWindow, Slowed
from haversack.sense.pipeline import Result, latency_after

# The public latency table in ms: encoder, frames a second, then chunks of 800, 1000, 1200 for each sound
# encoder.
PUBLIC_MS = {
    "18": {
        "20": [78.51, 77.48, 50.99, 78.4, 77.92, 51.49, 79.08, 77.91, 52.43],
        "25": [65.99, 65.97, 43.14, 67.05, 66.37, 44.07, 67.01, 67.06, 43.51],
        "29": [61.62, 60.04, 39.65, 60.9, 61.08, 40.41, 61.97, 61.64, 40.26],
    },
    "34": {
        "20": [76.23, 75.45, 48.84, 77.05, 76.1, 49.85, 77.3, 76.72, 50.73],
        "25": [64.74, 64.55, 45.55, 65.15, 64.72, 46.38, 66.51, 65.83, 45.83],
        "29": [58.83, 58.26, 50.33, 59.46, 59.52, 50.76, 60.17, 59.99, 51.12],
    },
    "50": {
        "20": [76.1, 75.38, 51.06, 75.08, 75.08, 50.8, 75.45, 75.66, 51.35],
        "25": [63.47, 63.69, 52.64, 64.7, 63.49, 52.19, 64.59, 64.02, 52.08],
        "29": [73.25, 60.32, 54.33, 78.31, 62.46, 56.6, 81.2, 73.18, 63.29],
    },
}
# Mean accuracy in the public table at chunks of 1200, encoder 18: (frames a second, sound encoder) ->
# percent.
PUBLIC_ACCURACY = {(1, 0): 58.48, (1, 1): 46.92, (1, 2): 36.4, (2, 0): 63.88, (2, 1): 52.44, (2, 2): 40.16}
PUBLIC_AXES = (("18", "34", "50"), (20, 25, 29), ("small", "medium", "large"), (800, 1000, 1200))


@pytest.fixture(scope="module")
def model() -> StreamsModel:
    return StreamsModel.open("events")


@pytest.fixture(scope="module")
def data() -> Recordings:
    return make(12, 4321, read_photos(bundled("events") / PHOTOS))


@pytest.fixture(scope="module")
def space(model: StreamsModel) -> Space:
    return Space(model.shape)


def public() -> dict[str, Any]:
    names = ("small", "medium", "large")
    return {
        video: {
            rate: {
                name: dict(zip(("800", "1000", "1200"), row[3 * at : 3 * at + 3], strict=True))
                for at, name in enumerate(names)
            }
            for rate, row in rates.items()
        }
        for video, rates in PUBLIC_MS.items()
    }


# Known numbers


def test_the_public_latency_table_at_45_ms() -> None:
    table = read_latency_table(public(), PUBLIC_AXES)
    assert table.shape == (3, 3, 3, 3) and table.min() == 39.65 and table.max() == 81.2
    fits = {tuple(int(each) for each in place) for place in np.argwhere(table <= 45)}
    assert fits == {(0, rate, sound, 2) for rate in (1, 2) for sound in range(3)}
    accuracy = np.zeros((3, 3, 3, 3))
    for (rate, sound), percent in PUBLIC_ACCURACY.items():
        accuracy[0, rate, sound, 2] = percent
    accuracy[table > 45] = 99.0  # whatever does not fit is not chosen, however good
    best = np.unravel_index(decide(accuracy.reshape(-1), table.reshape(-1), 45.0), table.shape)
    assert tuple(int(each) for each in best) == (0, 2, 0, 2)
    assert round(accuracy[best], 1) == 63.9


def test_an_accuracy_table_of_percent_texts() -> None:
    raw = {"18": {"20": {"small": {"800": {"0": "54.00", "1": "42.00"}}}}}
    axes = (("18",), (20,), ("small",), (800,))
    assert read_accuracy_table(raw, axes, 2).reshape(-1).tolist() == [0.54, 0.42]
    with pytest.raises(UserError, match=r"no entry 18\.20\.small\.800\.2"):
        read_accuracy_table(raw, axes, 3)
    with pytest.raises(UserError, match=r"which no configuration has"):
        read_accuracy_table(raw, axes, 1)


@given(
    st.lists(st.floats(0, 0.2), min_size=1, max_size=40).map(lambda gaps: np.cumsum(gaps)), st.floats(0, 0.2)
)
@settings(max_examples=80)
def test_units_are_finished_one_after_the_other(arrive: np.ndarray, cost: float) -> None:
    done, wanted = 0.0, []
    for each in arrive:
        done = max(done, float(each)) + cost
        wanted.append(done)
    assert np.allclose(finish_times(arrive, cost), wanted)


def test_latencies_of_the_published_code_and_of_the_last_sample() -> None:
    assert latency_after(1.05, (1.0, 0.5)) == pytest.approx((50.0, 550.0))


# Choosing


def test_decide() -> None:
    accuracy, latency = np.array([0.5, 0.9, 0.9, 0.7]), np.array([1.0, 9.0, 8.0, 3.0])
    assert decide(accuracy, latency, 10) == 2  # of equals the faster
    assert decide(accuracy, latency, 5) == 3
    assert decide(accuracy, latency, 0.5) == 0  # none fits: the fastest


def test_the_factor_follows_and_stays_in_bounds() -> None:
    factor = 1.0
    for _ in range(60):
        factor = moved(factor, 20.0, 10.0)
    assert factor == pytest.approx(2.0, abs=0.01)
    for _ in range(60):
        factor = moved(factor, 1000.0, 1.0)
    assert factor == 3.0


@pytest.fixture
def profile(space: Space) -> StageProfile:
    """Milliseconds such that the larger an encoder, the longer."""
    cost = {"small": 1.0, "medium": 6.0, "large": 24.0}
    slow, fast = space.shape.senses
    encode = (
        {(size, unit): cost[size] for size in cost for unit in slow.units},
        {(size, unit): 0.5 * cost[size] for size in cost for unit in fast.units},
    )
    aggregate = tuple({key: 1.0 for key in side} for side in encode)
    fuse = {(one, other): 0.5 for one in cost for other in cost}
    return StageProfile(space, encode, aggregate, fuse, 0.25)  # type: ignore[arg-type]


def test_a_latency_is_its_stages(profile: StageProfile, space: Space) -> None:
    # A small encoder is done with a frame long before the next: one unit, aggregation, fusion, messages.
    assert profile.of(Config("small", 30, "small", 400)) == pytest.approx(1 + 1 + 0.5 + 0.25)
    # Twice as slow, the large one takes 48 ms a frame of 33: it falls behind by 15 with every frame but the
    # first.
    late = 30 * 48 - 29 * 1000 / 30
    assert profile.of(Config("large", 30, "small", 400), 2.0) == pytest.approx(late + 2 + 1 + 0.25)


@pytest.fixture
def accuracy(space: Space) -> F64:
    """The larger the encoder of frames, the better."""
    return np.array([{"small": 0.5, "medium": 0.6, "large": 0.7}[each.slow] for each in space.configs])


def settled(policy: Policy, accuracy: F64, slower: Sequence[float]) -> Policy:
    """After windows whose computing took `slower` times as long as profiled."""
    for scale in slower:
        policy.learn(float(policy.latencies(scale)[policy.choose(accuracy)]))
    return policy


def test_the_policy_steps_down_under_load(profile: StageProfile, space: Space, accuracy: F64) -> None:
    policy = settled(Policy(profile, 40.0), accuracy, [1.0] * 30)
    assert space.configs[policy.choose(accuracy)].slow == "large"
    assert policy.predicted_ms <= 40
    assert space.configs[policy.choose(accuracy, share=0.45)].slow == "medium"
    settled(policy, accuracy, [3.0] * 30)
    assert policy.factor > 2 and space.configs[policy.choose(accuracy)].slow != "large"


def test_a_small_encoder_tells_how_slow_a_large_one_would_be(
    profile: StageProfile, space: Space, accuracy: F64
) -> None:
    """Twice the computing: hardly a longer latency of the small one, and the large one far behind."""
    policy = settled(Policy(profile, 40.0), -accuracy, [2.0] * 40)
    assert space.configs[policy.choose(-accuracy)].slow == "small"
    assert policy.factor == pytest.approx(2.0, rel=0.02)
    large = space.configs.index(Config("large", 30, "small", 400))
    wanted = profile.latency_ms(2.0)
    assert np.allclose(policy.latencies(policy.factor), wanted, rtol=0.1) and wanted[large] > 10 * 40
    for chosen in (0, large):
        assert policy.scale_of(chosen, wanted[chosen]) == pytest.approx(2.0, rel=0.05)


def test_the_policy_leaves_room_where_answers_are_unsteady(
    profile: StageProfile, space: Space, accuracy: F64
) -> None:
    steady = settled(Policy(profile, 40.0), accuracy, [1.0] * 40)
    assert margin(steady.overruns) == pytest.approx(1.0, abs=0.02)
    unsteady = settled(Policy(profile, 40.0), accuracy, [1.0, 1.0, 1.0, 1.9] * 10)
    room = margin(unsteady.overruns)
    assert 1.3 < room < 1.95
    at = unsteady.choose(accuracy)
    assert space.configs[at].slow != "large"
    assert profile.latency_ms(1.9)[at] <= 40  # the slow windows are answered in time too


def test_the_margin_is_the_quantile_of_conformal_prediction() -> None:
    assert margin([]) == margin([1.0] * 5) == FIRST_OVERRUN  # nothing is known yet
    assert margin([0.8] * 30) == 1.0  # never sooner than foretold
    draw = np.random.default_rng(3)
    missed = []
    for _ in range(1000):
        seen = np.exp(draw.normal(0, 0.4, 151))
        missed.append(seen[-1] > margin(list(seen[:-1]), 0.9))
        assert margin(list(seen[:-1]), 0.9) == max(1.0, np.sort(seen[:-1])[135])  # ceil(151 * 0.9) = 136
    assert 0.06 < np.mean(missed) <= 0.12  # at most one in ten, but for chance


def test_a_deadline_shorter_than_fusing_is_refused(profile: StageProfile) -> None:
    with pytest.raises(UserError, match="shorter than fusing alone") as told:
        Policy(profile, 0.4, least_ms=0.5)
    assert told.value.nearest == 1.0


def test_a_profile_is_read_as_it_was_written(profile: StageProfile, space: Space, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(profile_text(profile))
    again = read_profile(path, space)
    assert (again.latency_ms(1.7) == profile.latency_ms(1.7)).all()
    raw = json.loads(path.read_text())
    del raw["stages"]["encode"]["slow"]["large:25"]
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="large:25"):
        read_profile(path, space)
    raw["format"] = 9
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="no profile of format"):
        read_profile(path, space)


def test_a_latency_table_is_a_profile(space: Space, tmp_path: Path) -> None:
    sizes, rates, _, chunks = space.axes
    per_chunk = {str(chunk): 10.0 + chunk / 100 for chunk in chunks}
    table: dict[str, Any] = {
        size: {str(rate): {one: dict(per_chunk) for one in sizes} for rate in rates} for size in sizes
    }
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    found = read_profile(path, space)
    assert isinstance(found, TableProfile) and found.latency_ms(2.0)[0] == 28.0
    del table["small"]["20"]["large"]["500"]
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"small\.20\.large\.500"):
        read_profile(path, space)
    table["small"]["20"]["large"]["500"] = "soon"
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match="no number that fits"):
        read_profile(path, space)


def test_a_configuration_that_is_none(space: Space) -> None:
    assert str(space.read("large:30:small:600")) == "large:30:small:600"
    assert len(space.configs) == 81
    with pytest.raises(UserError, match="not one of the model's"):
        space.read("large:29:small:600")


# Clocks


def test_a_lost_frame_leaves_its_place_empty(model: StreamsModel) -> None:
    clock = FrameClock(model.shape.slow, "refuse")
    assert [clock.place(at / 30 + 7.0) for at in (0, 1, 2, 5, 6)] == [0, 1, 2, 5, 6]
    assert clock.lost == 2


def test_frames_out_of_order(model: StreamsModel) -> None:
    clock = FrameClock(model.shape.slow, "refuse")
    clock.place(0.0)
    clock.place(0.1)
    with pytest.raises(UserError, match="out of order"):
        clock.place(0.05)
    lax = FrameClock(model.shape.slow, "drop")
    assert [lax.place(t) for t in (0.0, 0.1, 0.05, 0.133)] == [0, 3, None, 4] and lax.dropped == 1
    with pytest.raises(UserError, match="which is none"):
        lax.place(float("nan"))


@pytest.mark.parametrize("rate", [15.0, 24.0, 60.0])
def test_frames_at_another_rate(model: StreamsModel, rate: float) -> None:
    clock = FrameClock(model.shape.slow, "drop")
    with pytest.raises(UserError, match=r"trained on 30|missing") as told:
        for at in range(30):
            clock.place(at / rate)
    assert rate == 24.0 or told.value.given == pytest.approx(rate, rel=0.01)


def test_a_rate_that_is_nearly_right_is_taken(model: StreamsModel) -> None:
    clock = FrameClock(model.shape.slow, "refuse")
    assert [clock.place(at / 29.97) for at in range(30)] == list(range(30))


def test_samples_with_gaps_overlaps_and_another_rate(model: StreamsModel) -> None:
    clock = SampleClock(model.shape.fast, "refuse")
    assert clock.place(3.0, 400) == 0 and clock.place(3.05, 400) == 400
    assert clock.place(3.15, 400) == 1200 and clock.lost == 400
    with pytest.raises(UserError, match="out of order"):
        clock.place(3.1, 400)
    other = SampleClock(model.shape.fast, "refuse")
    with pytest.raises(UserError, match=r"trained on 8000|missing"):
        for at in range(20):
            other.place(at * 400 / 4000, 400)


def test_clocks_that_are_apart(model: StreamsModel) -> None:
    slow, fast = model.shape.senses
    assert check_skew(slow, fast, 5.02, 5.0) == pytest.approx(0.02)
    with pytest.raises(UserError, match="350 ms apart") as told:
        check_skew(slow, fast, 5.35, 5.0)
    assert told.value.nearest == pytest.approx(0.35)


# A window, pushed


def played(
    session: PipelinedSession, data: Recordings, at: int, *, frames: int = 30, samples: int = 4000
) -> Result:
    """Push a recording in the order of time: 10 ms of sound, and frames between."""
    sound = data.sound[at]
    events: list[tuple[float, str, Any]] = [
        (start / 8000, "microphone", sound[start : start + 80]) for start in range(0, samples, 80)
    ]
    events += [(number / 30, "camera", data.frames[at, number]) for number in range(frames)]
    for t, name, unit in sorted(events, key=lambda event: event[0]):
        session.push(name, unit, t)
    return session.result()


@pytest.mark.parametrize("text", ["small:20:large:600", "large:30:medium:500", "medium:25:small:400"])
def test_a_session_answers_what_the_networks_say(
    model: StreamsModel, data: Recordings, space: Space, text: str
) -> None:
    config = space.read(text)
    windows = [SenseWindow(model, sense, config) for sense in (SLOW, FAST)]
    windows[SLOW].encode_all([data.frames[0, number] for number in windows[SLOW].plan], 7)
    padded = np.pad(data.sound[0], (0, config.chunk))
    windows[FAST].encode_all([padded[at : at + config.chunk] for at in windows[FAST].plan], 30)
    wanted = model.fuse((config.slow, config.fast), windows[SLOW].feature(), windows[FAST].feature())
    found = played(PipelinedSession(model, config=config, skip=False), data, 0)
    assert np.abs(found.probabilities - wanted).max() < 1e-4
    assert found.used == found.planned == (len(windows[SLOW].plan), len(windows[FAST].plan))
    assert found.label == model.shape.labels[int(wanted.argmax())] and not found.warnings


def test_the_gate_stops_the_camera_and_nothing_else_changes(model: StreamsModel, data: Recordings) -> None:
    config = Config("large", 30, "large", 400)
    kept, stopped = 0, 0
    for at in range(12):
        whole = played(PipelinedSession(model, config=config, skip=False), data, at)
        gated = played(PipelinedSession(model, config=config), data, at)
        places = SenseWindow(model, SLOW, config).places
        assert gated.used[0] in (*places, 30) and gated.stopped == (gated.used[0] < 30)
        kept += gated.label == whole.label
        stopped += gated.stopped
        if not gated.stopped:
            assert np.abs(gated.probabilities - whole.probabilities).max() < 1e-5
    assert stopped >= 1 and kept >= 10


def test_a_session_chooses_by_its_first_units(
    model: StreamsModel, data: Recordings, profile: StageProfile
) -> None:
    policy = Policy(profile, 40.0)
    found = played(PipelinedSession(model, policy=policy, skip=False), data, 3)
    assert profile.of(found.config) <= 40 and found.stages["optimizer"] > 0
    tight = played(PipelinedSession(model, policy=Policy(profile, 4.0), skip=False), data, 3)
    assert tight.config.slow == "small"


def test_a_slower_processor_says_the_same(model: StreamsModel, data: Recordings) -> None:
    config = Config("small", 20, "small", 600)
    one = played(PipelinedSession(model, config=config, skip=False), data, 1)
    other = played(PipelinedSession(Slowed(model, 3), config=config, skip=False), data, 1)
    assert (one.probabilities == other.probabilities).all()


def test_a_sensor_that_stops_in_mid_stream(model: StreamsModel, data: Recordings) -> None:
    config = Config("small", 30, "small", 400)
    found = played(PipelinedSession(model, config=config, skip=False), data, 2, frames=18)
    assert found.used[0] == 18 and any("camera stopped after 18 of 30" in each for each in found.warnings)
    with pytest.raises(UserError, match="camera stopped after 9 of 30 units, too few"):
        played(PipelinedSession(model, config=config, skip=False), data, 2, frames=9)
    found = played(PipelinedSession(model, config=config, skip=False), data, 2, samples=2560)
    assert found.used[1] == 7 and any("microphone stopped" in each for each in found.warnings)
    with pytest.raises(UserError, match="microphone stopped after"):
        played(PipelinedSession(model, config=config, skip=False), data, 2, samples=800)


def test_lost_frames_are_filled_and_told(model: StreamsModel, data: Recordings) -> None:
    config = Config("small", 30, "small", 400)
    session = PipelinedSession(model, config=config, skip=False)
    for start in range(0, 4000, 400):
        session.push("microphone", data.sound[0, start : start + 400], start / 8000)
    for number in range(30):
        if number not in (4, 5, 17):
            session.push("camera", data.frames[0, number], number / 30)
    found = session.result()
    assert found.used[0] == 30 and any("camera: 3 units missing" in each for each in found.warnings)
    session = PipelinedSession(model, config=config, skip=False)
    with pytest.raises(UserError, match=r"missing|trained on"):
        for number in (0, 1, 2, 3, 14, 15):
            session.push("camera", data.frames[0, number], number / 30)


@pytest.mark.parametrize(
    ("name", "unit", "t", "wanted"),
    [
        ("lidar", np.zeros((32, 32), np.uint8), 0.0, "modality 'lidar' is not known"),
        ("camera", np.zeros((32, 31), np.uint8), 0.0, r"uint8 \[32, 31\]"),
        ("camera", np.zeros((32, 32), np.float32), 0.0, "float32"),
        ("microphone", np.zeros(80, np.int16), 0.0, "int16"),
        ("microphone", np.zeros((2, 80), np.float32), 0.0, r"\[2, 80\]"),
        ("microphone", np.full(80, np.nan, np.float32), 0.0, "no number"),
        ("camera", np.zeros((32, 32), np.uint8), float("inf"), "which is none"),
    ],
)
def test_units_that_do_not_fit(model: StreamsModel, name: str, unit: Any, t: float, wanted: str) -> None:
    session = PipelinedSession(model, config=Config("small", 20, "small", 400))
    with pytest.raises(UserError, match=wanted):
        session.push(name, unit, t)


def test_clocks_of_a_session(model: StreamsModel, data: Recordings) -> None:
    config = Config("small", 20, "small", 400)
    session = PipelinedSession(model, config=config)
    session.push("microphone", data.sound[0, :80], 10.0)
    with pytest.raises(UserError, match=r"skew_s=-0\.400"):
        session.push("camera", data.frames[0, 0], 9.6)
    session = PipelinedSession(model, config=config, skew_s=-0.4)
    session.push("microphone", data.sound[0, :80], 10.0)
    session.push("camera", data.frames[0, 0], 9.6)
    session.push("camera", data.frames[0, 1], 9.6 + 1 / 30)
    with pytest.raises(UserError, match="out of order"):
        session.push("camera", data.frames[0, 2], 9.6)
    lax = PipelinedSession(model, config=config, late="drop")
    for t in (0.0, 1 / 30, 0.01, 2 / 30):
        lax.push("camera", data.frames[0, 0], t)
    with pytest.raises(UserError, match="stopped"):
        lax.result()


def test_a_session_needs_one_way_to_choose(model: StreamsModel, profile: StageProfile) -> None:
    config = Config("small", 20, "small", 400)
    with pytest.raises(UserError, match="not both"):
        PipelinedSession(model)
    with pytest.raises(UserError, match="not both"):
        PipelinedSession(model, config=config, policy=Policy(profile, 40.0))
    with pytest.raises(UserError, match="late=never"):
        PipelinedSession(model, config=config, late="never")
    with pytest.raises(UserError, match="not one of the model's"):
        PipelinedSession(model, config=Config("huge", 20, "small", 400))
    with pytest.raises(UserError, match="stopped after 0"):
        PipelinedSession(model, policy=Policy(profile, 40.0)).result()
