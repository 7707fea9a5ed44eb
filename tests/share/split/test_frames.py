"""Frames, packs and traces: what is whole comes back, what is not is refused in a sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, check_pack
from haversack.share._split_frame import HEAD_BYTES, Fares, Frame, decode_frame, encode_frame
from haversack.share._split_halves import SlimEncoder, SplitServer
from haversack.share._split_links import link_of, read_traces
from haversack.share._split_pack import open_split, split_findings, write_device_half

MODEL = bytes(range(16))
SHAPE = (6, 4, 4)
WHOLE = encode_frame(Frame(7, 2, 3, -1.5, 0.25, bytes(36), Fares(300, 120, 9, 8)), MODEL)


def test_a_frame_comes_back() -> None:
    frame, cells = decode_frame(WHOLE, MODEL, SHAPE, 4)
    assert (frame.seq, frame.k, frame.b, frame.low, frame.step) == (7, 2, 3, -1.5, 0.25)
    assert frame.fares == Fares(300, 120, 9, 8) and cells.shape == SHAPE
    assert len(WHOLE) == HEAD_BYTES + 36


@settings(max_examples=200)
@given(st.binary(max_size=120))
def test_any_bytes_are_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(UserError):
        decode_frame(data, MODEL, SHAPE, 4)


@settings(max_examples=200)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_an_altered_frame_is_refused_or_a_frame(at: int, value: int) -> None:
    data = bytearray(WHOLE)
    data[at] = value
    try:
        frame, cells = decode_frame(bytes(data), MODEL, SHAPE, 4)
    except UserError:
        return
    assert 1 <= frame.k <= 4 and cells.max() < 2**frame.b and np.isfinite(frame.low)


@pytest.mark.parametrize("cut", range(0, len(WHOLE), 5))
def test_a_frame_cut_short(cut: int) -> None:
    with pytest.raises(UserError):
        decode_frame(WHOLE[:cut], MODEL, SHAPE, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: encode_frame(Frame(1, 5, 1, 0, 1, bytes(12)), MODEL), "k=5"),
        (lambda f: encode_frame(Frame(1, 0, 1, 0, 1, bytes(12)), MODEL), "k=0"),
        (lambda f: encode_frame(Frame(1, 1, 5, 0, 1, bytes(60)), MODEL), "b=5"),
        (lambda f: encode_frame(Frame(1, 1, 1, 0, float("nan"), bytes(12)), MODEL), "step=nan"),
        (lambda f: encode_frame(Frame(1, 1, 1, float("inf"), 1, bytes(12)), MODEL), "low=inf"),
        (lambda f: encode_frame(Frame(1, 1, 1, 0, 0.0, bytes(12)), MODEL), "step=0"),
        (lambda f: encode_frame(Frame(1, 1, 1, 0, 1, bytes(13)), MODEL), "payload has 13"),
        (
            lambda f: encode_frame(Frame(1, 1, 1, 0, 1, bytes(12)), MODEL) + b"x",
            "carries 12 bytes and carries 13",
        ),
        (lambda f: encode_frame(Frame(1, 1, 1, 0, 1, bytes(12)), bytes(16)), "is of model"),
        (lambda f: f[:4] + b"\x02" + f[5:], "is of version 2"),
    ],
)
def test_what_a_frame_may_not_say(change, said: str) -> None:
    with pytest.raises(UserError, match=said):
        decode_frame(change(WHOLE), MODEL, SHAPE, 4)


def test_check_knows_split_packs(detector, tmp_path: Path) -> None:
    assert check_pack(detector.path) == [] and split_findings(detector.path) == []
    half = tmp_path / "device.pack"
    record = write_device_half(open_split(detector.path)[0], half)
    assert record.half == "device" and split_findings(half) == []
    assert Pack.open(half).nbytes < Pack.open(detector.path).nbytes / 5
    other = SlimEncoder(half)
    whole = SlimEncoder(detector.path)
    assert other.encode(detector.picture) == whole.encode(detector.picture)
    with pytest.raises(UserError, match="device's half"):
        SplitServer(half)


def test_a_pack_whose_hash_is_another_s(detector, tmp_path: Path) -> None:
    from haversack.share import _split_pack

    tensors = dict(detector.tensors)
    tensors["final.bias"] = tensors["final.bias"] + 1
    path = tmp_path / "altered.pack"
    _split_pack._write(path, detector.record, tensors, {})
    assert [finding.file for finding in split_findings(path)] == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("members", 9),
        ("side", 50),
        ("half", "third"),
        ("gains", [1.0]),
        ("model", "xyz"),
        ("quality", [[0.1] * 4]),
        ("teacher", float("1e9")),
        ("classes", []),
        ("more", 1),
    ],
)
def test_an_impossible_record(detector, tmp_path: Path, field: str, value: object) -> None:
    from haversack.core.pack import PackWriter

    said = {**Pack.open(detector.path).record.architecture, field: value}
    with PackWriter(tmp_path / "bad.pack", kind="split") as writer:
        writer.add_tensor("clips", "f32", (4,), [bytes(16)])
        writer.finish({"architecture": said})
    with pytest.raises(DamagedFileError):
        open_split(tmp_path / "bad.pack")
    assert split_findings(tmp_path / "bad.pack")


def test_what_is_no_split_pack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split pack"):
        open_split(tmp_path)


LINE = {
    "bw": 134.38, "e2e": 282.3, "mode": 13, "map": 32.0, "encoder_time": 136.6, "kbs": 20736.0,
    "deadline": 300, "time": 1669428310.5, "transfer_time": 89.36, "rec_time": 463.7, "decoder_time": 56.4,
}  # fmt: skip


def test_public_traces_are_read(tmp_path: Path) -> None:
    """`kbs` holds bytes of payload: 6912 times the bits."""
    path = tmp_path / "output.jsonl"
    path.write_text(json.dumps(LINE) + "\n\n" + json.dumps({**LINE, "mode": 24, "kbs": 27648.0}) + "\n")
    one, two = read_traces(path)
    assert (one.mode, two.mode) == ((1, 3), (2, 4))
    assert one.rate == pytest.approx(20736 / 89.36) and one.nbytes == 6912 * one.mode[1]
    link = link_of([one, two])
    assert link[0].mbit_s == pytest.approx(one.rate * 8e-3) and link[0].seconds == pytest.approx(0.2823)


@pytest.mark.parametrize(
    "text",
    ["", "not json\n", "[]\n", json.dumps({**LINE, "mode": 99}), json.dumps({**LINE, "kbs": "NaN"}),
     json.dumps({**LINE, "transfer_time": 0}), json.dumps({"mode": 11}), "\xff"],
)  # fmt: skip
def test_a_trace_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "output.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFileError):
        read_traces(path)


def test_the_head_has_its_size() -> None:
    assert struct.calcsize("<4sBBBxI16sffffII4xI") == HEAD_BYTES
