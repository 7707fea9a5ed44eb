"""The pipeline's networks: known numbers of the shift and the plans, numpy beside PyTorch, streams beside
batches, the folder and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.models.streams import _events, fusion, temporal_aggregation, unit_encoders
from haversack.models.streams._folder import PHOTOS, bundled, read_folder, read_photos, write_folder
from haversack.models.streams._model import FAST, SLOW, StreamsModel
from haversack.models.streams._record import AUDIO_MODELS, SIZES, VIDEO_MODELS, WIDTH
from haversack.models.streams._sizes import tensor_shapes
from haversack.models.streams._units import checkpoints, chunk_count, planned_frames
from haversack.models.streams.temporal_shift import GrowingShift, temporal_shift

EVENTS = bundled("events")


def test_the_shift_of_the_specification() -> None:
    x = np.repeat(np.arange(5, dtype=np.float32)[:, None], 4, 1)
    assert temporal_shift(x).T.tolist() == [
        [0, 0, 1, 2, 3],
        [1, 2, 3, 4, 4],
        [0, 1, 0, 1, 2],
        [2, 3, 4, 3, 4],
    ]


def test_two_steps_are_not_moved_by_two() -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert temporal_shift(x).tolist() == [[0, 5, 2, 3], [0, 5, 6, 7]]
    assert temporal_shift(x[:1]).tolist() == x[:1].tolist()


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=60)
def test_a_growing_shift_is_that_of_the_whole(steps: int, channels: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(steps, channels)).astype(np.float32)
    stream = GrowingShift(steps, channels)
    for at in range(steps):
        before = stream.computed
        stream.push(x[at])
        assert (stream.value == temporal_shift(x[: at + 1])).all()
        assert stream.computed - before <= 3
    with pytest.raises(IndexError):
        stream.push(x[0])


def test_plans_of_the_specification() -> None:
    wanted = [0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 26, 28]
    assert planned_frames(29, 20).tolist() == wanted
    assert [chunk_count(18_560, size) for size in (800, 1000, 1200)] == [24, 19, 16]


@pytest.mark.parametrize("rate", [20, 25, 30])
def test_the_gate_is_asked_when_the_fast_sense_has_ended(rate: int) -> None:
    plan = planned_frames(30, rate)
    places = checkpoints(plan, 1 / 30, 0.5, (0.5, 0.7, 0.9))
    assert len(places) == 3 and all(places[at] >= share * rate for at, share in enumerate((0.5, 0.7, 0.9)))
    assert (plan[places[0] - 1] + 1) / 30 >= 0.5 - 1e-9 and places[-1] < len(plan)
    assert checkpoints(plan, 1 / 30, 2.0, (0.5, 0.7)) == ()


@pytest.mark.parametrize("size", SIZES)
def test_numpy_computes_what_was_trained(size: str) -> None:
    torch = pytest.importorskip("torch")
    from haversack.models.streams import _network_torch as nets

    torch.manual_seed(3)
    draw = np.random.default_rng(1)
    video, audio = nets.FrameEncoder(size), nets.ChunkEncoder(size)
    frames = draw.integers(0, 256, (3, 32, 32)).astype(np.uint8)
    chunks = draw.normal(size=(3, 500)).astype(np.float32)
    chunks[2] = 0.25  # a deviation of 0
    with torch.no_grad():
        for module in (video, audio):  # statistics that are not the initial ones
            module.train()
            module(torch.rand(8, 32, 32) if module is video else torch.randn(8, 400))
            module.eval()
        wanted_video = video(torch.from_numpy(frames).float() / 255).numpy()
        wanted_audio = audio(torch.from_numpy(chunks)).numpy()
    strides = [stride for _, stride in VIDEO_MODELS[size]]
    ours = unit_encoders.encode_frames(frames, nets.tensors(video, "v"), "v", strides)
    assert np.abs(ours - wanted_video).max() < 1e-4
    strides = [stride for *_, stride in AUDIO_MODELS[size]]
    ours = unit_encoders.encode_chunks(chunks, nets.tensors(audio, "a"), "a", strides)
    assert np.abs(ours - wanted_audio).max() < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 17])
def test_aggregation_and_fusion_compute_what_was_trained(steps: int) -> None:
    torch = pytest.importorskip("torch")
    from haversack.models.streams import _network_torch as nets

    torch.manual_seed(steps)
    x = torch.randn(steps, WIDTH)
    for module, ours in (
        (nets.VideoAggregator(), temporal_aggregation.aggregate_video),
        (nets.AudioAggregator(), temporal_aggregation.aggregate_audio),
        (nets.PlainAggregator(), temporal_aggregation.aggregate_plain),
    ):
        with torch.no_grad():
            wanted = module(x[None])[0].numpy()
        found = ours(x.numpy(), nets.tensors(module, "t"), "t")  # type: ignore[operator]
        assert np.abs(found - wanted).max() < 1e-5
    model, gate, predictor = nets.Fusion(2, 12).eval(), nets.Gate().eval(), nets.Predictor(12).eval()
    two = torch.randn(2, WIDTH)
    with torch.no_grad():
        logits = model(two[None])[0].numpy()
        sum_ = gate(two.reshape(1, -1)) + torch.logit(torch.tensor(0.9))
        stop = float(torch.sigmoid(0.5 * sum_)[0])
        accuracy = predictor(torch.tensor([[0.3, 0.7, 0.5, 1.0, 0.0, 0.5]]))[1].numpy()
    assert np.abs(fusion.fuse(two.numpy(), nets.tensors(model, "f"), "f") - logits).max() < 1e-5
    sure = fusion.stop_probability(two[0].numpy(), two[1].numpy(), 0.9, nets.tensors(gate, "gate"))
    assert abs(sure - stop) < 1e-5
    rows = fusion.predictor_input(0.3, np.array([[1, 2, 0, 1]]), np.array([2, 2, 2, 2]))
    assert np.allclose(rows, [[0.3, 0.7, 0.5, 1.0, 0.0, 0.5]])
    assert np.abs(fusion.predict_accuracy(rows, nets.tensors(predictor, "predictor")) - accuracy).max() < 1e-5


def test_the_shift_of_the_trained_network_is_the_defined_one() -> None:
    torch = pytest.importorskip("torch")
    from haversack.models.streams._network_torch import shifted

    for steps in range(1, 9):
        x = np.random.default_rng(steps).normal(size=(steps, WIDTH)).astype(np.float32)
        assert (temporal_shift(x) == shifted(torch.from_numpy(x.T[None]))[0].numpy().T).all()


def test_units_are_encoded_alone() -> None:
    """A batch gives each unit its own features: nothing depends on who is beside it."""
    model = StreamsModel.open("events")
    draw = np.random.default_rng(2)
    frames = draw.integers(0, 256, (5, 32, 32)).astype(np.uint8)
    chunks = draw.normal(size=(5, 400)).astype(np.float32)
    for sense, units in ((SLOW, frames), (FAST, chunks)):
        for size in SIZES:
            whole = model.encode(sense, size, units)
            alone = np.concatenate([model.encode(sense, size, unit[None]) for unit in units])
            assert np.abs(whole - alone).max() < 1e-4


def test_recordings_are_drawn_by_their_seed_and_say_their_truth() -> None:
    photos = read_photos(EVENTS / PHOTOS)
    one, again = _events.make(24, 5, photos), _events.make(24, 5, photos)
    assert (one.frames == again.frames).all() and (one.sound == again.sound).all()
    assert sorted(one.labels.tolist()) == sorted(list(range(12)) * 2)
    assert np.allclose(one.shown.sum(2), 1, atol=1e-5) and np.allclose(one.said.sum(2), 1, atol=1e-5)
    for at in range(24):
        word = _events.WORDS[one.labels[at]]
        shown = [_events.LETTERS[letter] for letter in one.shown[at].argmax(1)]
        assert [letter for at, letter in enumerate(shown) if at == 0 or shown[at - 1] != letter] == list(word)


def test_the_shipped_model_tells_words_apart() -> None:
    model = StreamsModel.open("events")
    made = _events.make(96, 77, read_photos(EVENTS / PHOTOS)[6:])
    right = 0
    for at in range(96):
        seen = model.aggregate(SLOW, "large", model.encode(SLOW, "large", made.frames[at]))
        heard = model.aggregate(FAST, "large", model.encode(FAST, "large", made.sound[at].reshape(-1, 400)))
        right += int(model.fuse(("large", "large"), seen, heard).argmax() == made.labels[at])
    # The card's accuracy less four standard deviations of a share of 96.
    least = float(model.table[2, 2, 2, 0].mean())
    assert right / 96 > least - 4 * np.sqrt(least * (1 - least) / 96)


def test_the_shipped_model_is_small() -> None:
    assert (EVENTS / "model.safetensors").stat().st_size < 1_000_000
    assert (EVENTS / "CARD.md").is_file()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    goal = tmp_path / "model"
    shutil.copytree(EVENTS, goal)
    return goal


def test_a_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    shape, table, tensors = read_folder(EVENTS)
    assert {name: array.shape for name, array in tensors.items()} == tensor_shapes(shape)
    write_folder(tmp_path / "again", shape, table, tensors)
    again = read_folder(tmp_path / "again")
    assert again[0] == shape and (again[1] == table).all()
    assert all((again[2][name] == array).all() for name, array in tensors.items())


def test_at_the_usual_evidence_the_table_stands(folder: Path) -> None:
    model = StreamsModel.open(folder)
    choices = np.argwhere(np.ones(model.table.shape[:4]))
    usual = model.shape.usual_evidence
    assert usual is not None
    assert np.allclose(model.accuracies(usual, choices), model.table.mean(-1).reshape(-1), atol=1e-6)
    path = folder / "pipeline.json"
    raw = json.loads(path.read_text())
    del raw["usual_evidence"]  # a model without: the predictor by itself
    path.write_text(json.dumps(raw))
    plain = StreamsModel.open(folder)
    far = plain.accuracies(-0.4, choices) - plain.accuracies(usual, choices)
    assert np.allclose(model.accuracies(-0.4, choices) - model.accuracies(usual, choices), far, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda raw: raw["labels"].pop(), "12 classes|shape"),
        (lambda raw: raw.update(format=2), "format"),
        (lambda raw: raw["slow"].update(rate=-1), "impossible"),
        (lambda raw: raw["slow"].update(shape=[4096, 4096]), "impossible"),
        (lambda raw: raw.update(sizes=["small", "huge", "large"]), "huge"),
        (lambda raw: raw["accuracy"][0][0][0][0].__setitem__(0, 7), "share"),
        (lambda raw: raw["accuracy"][0].pop(), "number|shape"),
        (lambda raw: raw.update(extra=1, gate_cut="high"), "gate_cut"),
        (lambda raw: raw.update(usual_evidence=2.0), "evidence is no cosine"),
    ],
)
def test_a_record_that_does_not_hold_is_refused(folder: Path, change: object, wanted: str) -> None:
    path = folder / "pipeline.json"
    raw = json.loads(path.read_text())
    change(raw)  # type: ignore[operator]
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=wanted):
        StreamsModel.open(folder)


def test_weights_that_do_not_hold_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError):
        StreamsModel.open(folder)
    with pytest.raises(UserError, match="no model of a pipeline"):
        StreamsModel.open(folder / "none")
