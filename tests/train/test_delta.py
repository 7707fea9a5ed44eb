"""Deltas: exact over their base, refused for another, small, checked like every pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from haversack.core._record import DeltaEntry, PartEntry, decode_record, encode_record
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.train._delta import apply_delta, read_delta, taken, write_delta
from haversack.train._network import Slice, identity
from haversack.train._slots import Learned

SLOTS = {"parameters": "head", "gradient": "backprop", "precision": "f32", "aggregation": "alone"}


def entry_for(network: Any, **changes: Any) -> DeltaEntry:
    fields: dict[str, Any] = {
        "base_name": network.name,
        "base_sha256": identity(network),
        "classes": ("dark", "light"),
        "new_head": False,
        "slots": SLOTS,
        "seed": 3,
    }
    return DeltaEntry(**{**fields, **changes})


@pytest.fixture
def written(small: Any, tmp_path: Path) -> tuple[Any, Path]:
    """A network whose new head of three classes learned, and its delta."""
    network = small.SmallCnn()
    entry = entry_for(network, classes=("a", "b", "c"), new_head=True)
    network.new_head(("a", "b", "c"), 3)
    network.tensors()["head.weight"][...] += 1
    delta = taken(network, Learned(dict.fromkeys(("head.weight", "head.bias"))), entry)
    assert write_delta(tmp_path / "d", delta, [], {"steps": 1}) < 40_000
    return network, tmp_path / "d"


def test_a_delta_over_its_base_is_what_was_trained(small: Any, written: tuple[Any, Path]) -> None:
    network, path = written
    again = small.SmallCnn()
    apply_delta(again, read_delta(path))
    assert identity(again) == identity(network) and again.classes == ("a", "b", "c")
    assert not Pack.open(path).check()


def test_a_delta_of_another_base_is_refused(small: Any, written: tuple[Any, Path]) -> None:
    other = small.SmallCnn()
    other.tensors()["one.weight"][0, 0, 0, 0] += 1e-3
    before = identity(other)
    with pytest.raises(UserError, match=r"was made for small-cnn .* is another network") as refusal:
        apply_delta(other, read_delta(written[1]))
    assert refusal.value.field == "delta" and identity(other) == before


def test_parts_of_tensors_are_replaced_and_nothing_else(small: Any, tmp_path: Path) -> None:
    network = small.SmallCnn()
    part = Slice(1, (0, 5))
    entry = entry_for(network, slots={**SLOTS, "parameters": "all:blocks=1"})
    learned = Learned({"two.weight": part, "head.bias": None})
    part.put(network.tensors()["two.weight"], np.ones((8, 2, 3, 3), np.float32))
    delta = taken(network, learned, entry)
    write_delta(tmp_path / "d", delta, [], {})
    found = read_delta(tmp_path / "d")
    assert found.entry.parts == {"two.weight": PartEntry(axis=1, indices=(0, 5))}
    assert found.values["two.weight"].shape == (8, 2, 3, 3)
    with pytest.raises(UserError, match="do not agree on what changed"):
        apply_delta(small.SmallCnn(), found)


def test_integers_keep_their_type(tmp_path: Path) -> None:
    values = {
        "a": np.arange(-8, 8, dtype=np.int8).reshape(4, 4),
        "b": np.arange(3, dtype=np.int32),
        "c": np.arange(3, dtype=np.float16),
        "d": np.array(2.5, np.float32),
    }
    from haversack.train._delta import Delta

    entry = DeltaEntry(
        base_name="n", base_sha256="0" * 64, classes=("a", "b"), new_head=False, slots=SLOTS, seed=0
    )
    write_delta(tmp_path / "d", Delta(entry, values), [], {})
    found = read_delta(tmp_path / "d").values
    for name, array in values.items():
        assert found[name].dtype == array.dtype and (found[name] == array).all()
        assert found[name].shape == array.shape


def test_damage_is_found(written: tuple[Any, Path]) -> None:
    path = written[1] / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError):
        read_delta(written[1])
    assert Pack.open(written[1]).check()


def test_values_that_are_not_finite_are_refused(small: Any, tmp_path: Path) -> None:
    network = small.SmallCnn()
    network.tensors()["head.bias"][0] = np.nan
    delta = taken(network, Learned({"head.bias": None}), entry_for(network))
    write_delta(tmp_path / "d", delta, [], {})
    with pytest.raises(DamagedFileError, match="not finite"):
        read_delta(tmp_path / "d")


def test_other_packs_are_no_deltas(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "p") as writer:
        writer.add_tensor("a", "f32", (1,), [b"\0" * 4])
        writer.finish({})
    with pytest.raises(UserError, match="is a language pack and no delta"):
        read_delta(tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_sha256": "0" * 63}, "base_sha256"),
        ({"base_name": ""}, "name of its base"),
        ({"classes": []}, "classes are none"),
        ({"classes": ["a", "a"]}, "occurs twice"),
        ({"classes": ["a", "b\n"]}, "name of its classes"),
        ({"parts": {"head.bias": {"axis": 1, "indices": [0, 1, 2]}}}, "does not fit"),
        ({"parts": {"head.bias": {"axis": 0, "indices": [0, 1]}}}, "does not fit"),
        ({"parts": {"head.bias": {"axis": 0, "indices": [2, 1, 0]}}}, "do not rise"),
        ({"parts": {"head.bias": {"axis": 0, "indices": [-1, 0, 1]}}}, "do not rise"),
        ({"parts": {"none": {"axis": 0, "indices": [0]}}}, "does not fit"),
    ],
)
def test_records_that_cannot_be_are_refused(
    written: tuple[Any, Path], change: dict[str, Any], said: str
) -> None:
    record = json.loads((written[1] / "pack.json").read_text())
    record["delta"] |= change
    pack = Pack.open(written[1]).record
    delta = msgspec.convert(record["delta"], DeltaEntry)
    data = encode_record(msgspec.structs.replace(pack, delta=delta))
    with pytest.raises(ValueError, match=said):
        decode_record(data)


def test_kind_and_delta_go_together(written: tuple[Any, Path]) -> None:
    pack = Pack.open(written[1]).record
    for changed in ({"kind": "language"}, {"delta": None}):
        with pytest.raises(ValueError, match="delta"):
            decode_record(encode_record(msgspec.structs.replace(pack, **changed)))
