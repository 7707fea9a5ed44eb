"""The hand detector that ships: its graph is the network that was trained, and it finds unseen hands."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference"))

from hands_export import write_onnx  # noqa: E402
from hands_recipe import HELD_OUT_SEED, IN_HEIGHT, IN_WIDTH, anchors, hand_row, rendered  # noqa: E402
from haversack.collect.detector import HANDS  # noqa: E402
from train_hands import Hands, boxes_of, judged  # noqa: E402


def test_the_graph_is_the_network(tmp_path: Path) -> None:
    """Of random weights and statistics: normalisations folded, boxes decoded, in the order of the anchors."""
    torch.manual_seed(3)
    model = Hands()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
    model.eval()
    write_onnx(model, tmp_path / "hands.onnx")
    picture = np.random.default_rng(0).random((1, 3, IN_HEIGHT, IN_WIDTH), np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "hands.onnx"), providers=["CPUExecutionProvider"])
    names = ["boxes", "scores", "sides", "contacts", "palms"]
    found = dict(zip(names, session.run(names, {"picture": picture}), strict=True))
    with torch.no_grad():
        rows = model(torch.from_numpy(picture))[0]
        boxes = boxes_of(rows, *(torch.from_numpy(part) for part in anchors()))
    size = np.array([IN_WIDTH, IN_HEIGHT, IN_WIDTH, IN_HEIGHT])
    assert np.allclose(found["boxes"], boxes.numpy() / size, atol=1e-3)
    for at, name in enumerate(("scores", "sides", "contacts")):
        assert np.allclose(found[name], rows[:, at].sigmoid().numpy(), atol=1e-4)
    assert np.allclose(found["palms"], rows[:, 7:9].numpy(), atol=1e-3)
    assert found["boxes"].shape == (1260, 4)


def test_hands_that_it_never_saw() -> None:
    numbers = judged(HANDS, rendered(HELD_OUT_SEED + 500, 2, 25))
    assert numbers["hands"] > 20
    assert numbers["recall"] > 0.8 and numbers["precision"] > 0.9
    assert HANDS.stat().st_size < 2 << 20


def test_a_hand_out_of_the_picture_is_none() -> None:
    K = np.array([[270.0, 0, 159.5], [0, 270.0, 89.5], [0, 0, 1]])
    joints = np.random.default_rng(1).normal(0, 0.03, (21, 3)) + np.array([0, 0, 0.5])
    row = hand_row(joints, K, True)
    assert row is not None and 0 <= row[0] < row[2] <= 1 and row[5] == 1
    assert hand_row(joints + np.array([0.5, 0, 0]), K, True) is None
    assert hand_row(joints - np.array([0, 0, 0.5]), K, True) is None
