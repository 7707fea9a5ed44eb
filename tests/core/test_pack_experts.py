"""A pack with experts: their tensors lie in a store of their own, and are the pack's like all others."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.expert_store import ExpertStore
from haversack.core.pack import Pack, PackWriter, check_pack

OWNERS = {f"b{b}.e{e}.{part}": (b, e) for b in range(2) for e in range(3) for part in ("up", "down")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def values(name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).standard_normal((5, 7)).astype("<f4")


def write(path: Path, names: list[str] | None = None, owners: dict = OWNERS, model: str = "m") -> Path:
    names = ["norm", *OWNERS, "head"] if names is None else names
    with PackWriter(path) as writer:
        writer.keep_experts(model, owners)
        for name in names:
            writer.add_tensor(name, "f32", (5, 7), [values(name)[:2], values(name)[2:]])
        writer.finish({"provenance": {"from": "a test"}})
    return path


def test_experts_lie_in_the_store_and_are_read_like_all_tensors(tmp_path: Path) -> None:
    pack = Pack.open(write(tmp_path / "a.pack"))
    assert pack.check() == []
    assert pack.record.provenance == {"from": "a test", "identity": "m"}
    assert [path.name for path in pack.files] == ["weights.safetensors", "experts.store"]
    for name in ("norm", *OWNERS, "head"):
        assert bytes(pack.bytes(name)) == values(name).tobytes()
        assert pack.tensors[name].file == ("experts.store" if name in OWNERS else "weights.safetensors")
    with ExpertStore.open(pack.path / "experts.store") as store:
        assert list(store.records) == [(b, e, "") for b in range(2) for e in range(3)]
        for record in store.records.values():
            assert list(record.entries()) == [pack.tensors[tensor.name] for tensor in record.tensors]


def test_tensors_of_one_block_may_come_in_any_order(tmp_path: Path) -> None:
    names = [f"b{b}.e{e}.{part}" for b in range(2) for part in ("down", "up") for e in (2, 0, 1)]
    pack = Pack.open(write(tmp_path / "a.pack", [*names, "norm"]))
    assert all(bytes(pack.bytes(name)) == values(name).tobytes() for name in names)


def test_matrices_in_parts_go_there_too(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "a.pack") as writer:
        writer.keep_experts("m", OWNERS)
        for name in OWNERS:
            for part in ("first", "second"):
                writer.add_tensor(f"{name}.{part}", "f32", (5, 7), [values(name + part)])
            writer.add_form(name, {"form": "low-rank", "shape": [5, 7], "rank": 5})
        writer.finish({})
    pack = Pack.open(tmp_path / "a.pack")
    assert set(pack.forms) == set(OWNERS)
    with ExpertStore.open(pack.path / "experts.store") as store:
        assert [len(record.tensors) for record in store.records.values()] == [4] * 6


def test_an_expert_that_is_not_whole_makes_no_pack(tmp_path: Path) -> None:
    names = list(OWNERS)
    with pytest.raises(ValueError, match=r"b1\.e2\.down belongs to an expert of which"):
        write(tmp_path / "a.pack", names[:-1])
    with pytest.raises(ValueError, match="belongs to an expert of which the rest was given before"):
        write(tmp_path / "a.pack", [*names[:1], *names[2:], names[1]])
    with pytest.raises(ValueError, match="given before"):
        write(tmp_path / "a.pack", [names[0], names[0]])
    with pytest.raises(ValueError, match=r"tensors b1\.e0\.down, b1\.e0\.up, b1\.e1\.down were not given"):
        write(tmp_path / "a.pack", names[:6])
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_pack_without_experts_has_no_store(tmp_path: Path) -> None:
    pack = Pack.open(write(tmp_path / "a.pack", ["norm"], {}))
    assert set(pack.record.files) == {"weights.safetensors"} and "identity" not in pack.record.provenance


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write(tmp_path / "a.pack")


def test_a_store_of_another_model_is_found_at_opening(pack: Path, tmp_path: Path) -> None:
    for model, said in (("n", r"experts of another model \(n\)"), ("other", "bytes instead of")):
        other = write(tmp_path / "b.pack", model=model)
        shutil.copy(other / "experts.store", pack / "experts.store")
        with pytest.raises(DamagedFileError, match=said):
            Pack.open(pack)


def test_a_store_that_says_something_else_than_the_record_is_found(pack: Path) -> None:
    """Its own checksums hold; two experts have changed places."""
    data = (pack / "experts.store").read_bytes()
    start, count = struct.unpack_from("<QQ", data, 16)
    header = data[start:].replace(b"b0.e0.", b"b0.e9.").replace(b"b0.e1.", b"b0.e0.")
    header = header.replace(b"b0.e9.", b"b0.e1.")
    assert len(header) == count and header != data[start:]
    page = data[:32] + struct.pack("<I", zlib.crc32(header)) + data[36:4092]
    page += struct.pack("<I", zlib.crc32(page))
    (pack / "experts.store").write_bytes(page + data[4096:start] + header)
    with pytest.raises(DamagedFileError, match=r"is not what pack\.json says"):
        Pack.open(pack)
    assert len(check_pack(pack)) > 1


def test_altered_experts_are_found_by_check_and_left_to_those_who_read_them(pack: Path) -> None:
    path = pack / "experts.store"
    data = bytearray(path.read_bytes())
    data[4100] ^= 1
    path.write_bytes(data)
    opened = Pack.open(pack)
    opened.verify_once(without=("experts.store",))
    with pytest.raises(DamagedFileError, match="altered, by their checksum"):
        opened.verify_once()
    (finding,) = check_pack(pack)
    assert finding.file == "experts.store" and finding.offset == 4096


def test_the_store_s_name_is_taken(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "a.pack") as writer, pytest.raises(ValueError, match="not allowed in a pack"):
        writer.add_file("experts.store", b"")


def test_a_missing_store_is_named(pack: Path) -> None:
    (pack / "experts.store").unlink()
    with pytest.raises((DamagedFileError, UserError), match=r"experts\.store is damaged: it is missing"):
        Pack.open(pack)
