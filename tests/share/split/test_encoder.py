"""The encoder: its quantizer and packing, its three runtimes against PyTorch, and members that do not run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.core.pack import Pack
from haversack.models.vision import slimmable
from haversack.models.vision._slim_onnx import device_onnx
from haversack.models.vision._slim_student_torch import normed
from haversack.models.vision.slimmable import (
    gains,
    min_max,
    pack_bits,
    payload_bytes,
    quantize,
    restore,
    unpack_bits,
)
from haversack.models.vision.slimmable_torch import modes_of, modules_of
from haversack.share._split_data import fit_frame
from haversack.share._split_halves import SlimEncoder, SplitServer, session

MODES = modes_of(4)


def test_the_published_payloads() -> None:
    assert [payload_bytes(bits) for bits in (1, 2, 3, 4)] == [6912, 13824, 20736, 27648]
    assert [payload_bytes(bits, 96) for bits in (1, 2, 3, 4)] == [432, 864, 1296, 1728]
    assert gains() == (1.0, 2.0, 1.0, 0.5)


@given(st.integers(1, 4), st.lists(st.integers(0, 15), min_size=1, max_size=61))
def test_packing_gives_back_what_was_packed(bits: int, values: list[int]) -> None:
    cells = np.array(values, np.uint8) & (2**bits - 1)
    data = pack_bits(cells, bits)
    assert len(data) == -(-len(values) * bits // 8)
    assert (unpack_bits(data, bits, len(values)) == cells).all()
    text = "".join(f"{value:0{bits}b}" for value in cells)
    assert data == int(text.ljust(8 * len(data), "0"), 2).to_bytes(len(data), "big"), "the highest bit first"
    for wrong in (data + b"\0", data[:-1]):
        with pytest.raises(UserError, match="payload"):
            unpack_bits(wrong, bits, len(values))


@given(st.integers(1, 4), st.integers(0, 10_000))
def test_a_restored_value_is_half_a_cell_away_at_most(bits: int, seed: int) -> None:
    y = np.random.default_rng(seed).normal(0, 3, (6, 5, 5)).astype(np.float32)
    low, step = min_max(y, bits)
    cells = quantize(y, bits, low, step)
    assert cells.max() < 2**bits
    assert np.abs(restore(cells, low, step) - y).max() <= step / 2 * (1 + 1e-4)


def test_one_bit_between_the_ends_is_worse_than_within_the_clip() -> None:
    y = np.random.default_rng(0).normal(0, 1, (6, 24, 24)).astype(np.float32)
    errors = []
    for low, step in (min_max(y, 1), slimmable.learned_range(y, 1, slimmable.CLIPS[0])):
        errors.append(float(((restore(quantize(y, 1, low, step), low, step) - y) ** 2).mean()))
    assert errors[1] < 0.4 < errors[0]


@pytest.mark.parametrize("task", ["detector", "classifier"])
def test_every_runtime_sends_what_pytorch_sends(task: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(task)
    native, twin, server = SlimEncoder(made.path), SlimEncoder(made.path, "numpy"), SplitServer(made.path)
    graph = session(Pack.open(made.path).read_file("device.onnx"), 1, "device.onnx")
    for k, b in MODES:
        with torch.no_grad():
            y = torch.stack(made.student.outputs(normed(made.picture[None]), k)).sum(0)
            wanted = made.student.sent(y, b)
            last = made.teacher.rest(made.student.decode(wanted, (k, b)))[-1]
            logits = made.teacher.answer(last)[0].numpy()
        for encoder in (native, twin):
            encoder.set_mode(k, b)
            cells, low, step = encoder.cells(made.picture)
            off = np.abs(restore(cells, low, step) - wanted[0].numpy()) > 1e-3 * step
            assert off.mean() < 0.002, "but for values at a cell's edge"
        fed = {"picture": made.picture, "k": np.array(k, np.int64), "b": np.array(b, np.int64)}
        exported = graph.run(None, fed)
        assert (exported[0] != cells).mean() < 0.002
        assert exported[1] == pytest.approx(low, rel=1e-4, abs=1e-5)
        if not off.any():
            assert np.allclose(server.logits(cells, low, step, k, b), logits, atol=1e-4)


def test_members_beyond_k_are_not_run(detector) -> None:
    """Weights that are no numbers spoil an answer exactly where their member runs."""
    tensors = {
        name: np.full_like(array, np.nan) if name.startswith("members.2.stem.conv") else array
        for name, array in detector.tensors.items()
    }
    graph = session(device_onnx(detector.record.net, tensors, detector.record.gains), 1, "device.onnx")
    ensemble = slimmable.Ensemble(tensors, 4, detector.record.gains)
    encoder = SlimEncoder(detector.path)
    calls: list[int] = []
    for at, one in enumerate(encoder._ensemble._sessions):
        encoder._ensemble._sessions[at] = _Counted(one, at, calls)
    for k in (1, 2, 3, 4):
        fed = {"picture": detector.picture, "k": np.array(k, np.int64), "b": np.array(4, np.int64)}
        assert np.isfinite(graph.run(None, fed)[1]) == (k < 3)
        assert np.isfinite(ensemble(slimmable.normed(detector.picture), k)).all() == (k < 3)
        calls.clear()
        encoder.set_mode(k, 4)
        encoder.cells(detector.picture)
        assert calls == list(range(k))


class _Counted:
    def __init__(self, session, at: int, calls: list[int]) -> None:
        self.session, self.at, self.calls = session, at, calls

    def run(self, *given):
        self.calls.append(self.at)
        return self.session.run(*given)


@pytest.mark.parametrize("mode", [(0, 1), (5, 1), (1, 0), (1, 5), (True, 1), (1.5, 2)])
def test_a_mode_that_there_is_not(detector, mode) -> None:
    with pytest.raises(UserError, match="is not supported"):
        SlimEncoder(detector.path).set_mode(*mode)


@pytest.mark.parametrize("shape", [(47, 48, 3), (48, 48), (48, 48, 4), (0, 0, 3)])
def test_a_picture_of_another_size(detector, shape) -> None:
    with pytest.raises(UserError, match="the model takes uint8"):
        SlimEncoder(detector.path).cells(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="float64"):
        SlimEncoder(detector.path).cells(np.zeros((48, 48, 3)))


@pytest.mark.parametrize("size", [(31, 77), (480, 640), (1, 500), (48, 48)])
def test_a_frame_of_any_size_is_fitted_whole(size) -> None:
    frame = np.full((*size, 3), 200, np.uint8)
    made = fit_frame(frame, 48)
    assert made.shape == (48, 48, 3) and made.dtype == np.uint8
    high, wide = (max(1, round(each * 48 / max(size))) for each in size)
    assert (made[:high, :wide] == 200).all() and (made[high:] == 128).all() and (made[:, wide:] == 128).all()


def test_the_modules_come_back_from_their_tensors(detector) -> None:
    teacher, student = modules_of(detector.record.net, detector.tensors)
    x = normed(detector.picture[None])
    with torch.no_grad():
        assert torch.allclose(teacher(x), detector.teacher(x), atol=1e-5)
        assert torch.allclose(student(x, (3, 2)), detector.student(x, (3, 2)), atol=1e-4)
