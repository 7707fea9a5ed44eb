import json
import struct
import zlib

import msgspec
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haversack.core import _record
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter, TensorSource, check_pack, is_pack, nbytes_of, pack_schema

MIB = 2**20


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, tensors=None, files=None, **record):
    tensors = {"a": ("f32", (3,), struct.pack("<3f", 1, 2, 3))} if tensors is None else tensors
    with PackWriter(path) as writer:
        for name, (kind, shape, data, *rest) in tensors.items():
            writer.add_tensor(name, kind, shape, [data[:5], data[5:]], *rest)
        for name, data in (files or {}).items():
            writer.add_file(name, data)
        writer.finish(record)
    return path


def test_what_is_written_is_read(tmp_path):
    packed = bytes(range(256)) * 3
    tensors = {
        "z.first": ("f32", (2, 3), struct.pack("<6f", *range(6))),
        "a.second": ("int4", (16, 30), packed[:544], 64, "rows16-1"),
        "empty": ("bf16", (0, 4), b""),
    }
    path = write(
        tmp_path / "a.pack",
        tensors,
        {"tokenizer.json": b"{}", "LICENSE": __file__.encode()},
        architecture={"family": "llama"},
        plan={"precision": "gptq", "activations": "int8-dynamic"},
    )
    pack = Pack.open(path)
    assert isinstance(pack, TensorSource) and is_pack(path)
    assert list(pack.tensors) == ["z.first", "a.second", "empty"]
    for name, (kind, shape, data, *_) in tensors.items():
        assert bytes(pack.bytes(name)) == data
        assert (pack.tensors[name].kind, pack.tensors[name].shape) == (kind, shape)
    assert pack.tensors["a.second"].group == 64
    assert pack.files == (path / "weights.safetensors",)
    assert pack.read_file("tokenizer.json") == b"{}"
    assert pack.record.activations == "int8-dynamic" and pack.record.architecture == {"family": "llama"}
    assert pack.nbytes == sum(file.stat().st_size for file in path.iterdir())
    assert pack.check() == [] and [file.name for file in tmp_path.glob("*partial*")] == []
    with pytest.raises(UserError, match="no tensor b"):
        pack.bytes("b")
    with pytest.raises(TypeError):
        pack.bytes("z.first")[0] = 1


def test_the_reference_library_reads_the_weights_and_data_starts_on_a_page(tmp_path):
    path = write(tmp_path / "a.pack") / "weights.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        assert list(file.get_tensor("a")) == [1.0, 2.0, 3.0]
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 4096 == 0


@pytest.mark.parametrize("count", [0, 1, 400])
def test_a_header_that_outgrows_its_room_moves_the_data(tmp_path, count):
    tensors = {f"model.layers.{i}.weight": ("u8", (7001,), bytes([i % 251]) * 7001) for i in range(count)}
    pack = Pack.open(write(tmp_path / "a.pack", tensors))
    for name, (_, _, data) in tensors.items():
        assert bytes(pack.bytes(name)) == data
    assert pack.check() == []
    if count == 400:
        assert pack.record.files["weights.safetensors"].start > 16384


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip_of_any_tensors(data, tmp_path):
    names = data.draw(st.lists(st.text(min_size=1, max_size=30), unique=True, max_size=6))
    tensors = {}
    for name in names:
        kind = data.draw(st.sampled_from(["f32", "f16", "bf16", "u8", "i32", "int8", "int4", "int3"]))
        packed = kind.startswith("int")
        dims = st.integers(0, 40)
        shape = data.draw(st.tuples(dims, dims) if packed else st.lists(dims, max_size=3).map(tuple))
        group = data.draw(st.sampled_from([32, 64, 128])) if kind in ("int4", "int3") else None
        layout = "rows16-1" if packed else "rows-1"
        size = nbytes_of(kind, shape, group, layout)
        filler = data.draw(st.binary(min_size=1, max_size=9))
        tensors[name] = (kind, shape, (filler * (size // len(filler) + 1))[:size], group, layout)
    path = write(tmp_path / "a.pack", tensors)
    pack = Pack.open(path)
    assert pack.check() == []
    assert {name: bytes(pack.bytes(name)) for name in pack.tensors} == {n: t[2] for n, t in tensors.items()}
    if tensors:
        with safetensors.safe_open(path / "weights.safetensors", framework="numpy") as file:
            assert set(file.keys()) == set(tensors)


def test_checksums_are_crc32_of_each_mib(tmp_path):
    data = bytes(range(256)) * 9000  # 2.2 MiB
    path = write(tmp_path / "a.pack", {"a": ("u8", (len(data),), data)})
    entry = Pack.open(path).record.files["weights.safetensors"]
    assert entry.pieces == tuple(zlib.crc32(data[at : at + MIB]) for at in range(0, len(data), MIB))


def test_check_lists_every_finding_with_its_place(tmp_path):
    data = bytes(6 * MIB + 5)
    path = write(tmp_path / "a.pack", {"a": ("u8", (len(data),), data)}, {"x.json": b"{}", "y.json": b"[]"})
    start = Pack.open(path).record.files["weights.safetensors"].start
    weights = bytearray((path / "weights.safetensors").read_bytes())
    weights[start + MIB] ^= 1
    weights[start + 3 * MIB - 1] ^= 128
    weights[-1] ^= 4
    (path / "weights.safetensors").write_bytes(weights)
    (path / "x.json").unlink()
    (path / "y.json").write_bytes(b"[ ]")
    found = {(finding.file, finding.offset) for finding in check_pack(path)}
    assert found == {
        ("x.json", None),
        ("y.json", None),
        ("y.json", 0),
        ("weights.safetensors", start + MIB),
        ("weights.safetensors", start + 6 * MIB),
    }


def test_verified_once_then_only_when_the_file_changed(tmp_path, monkeypatch):
    path = write(tmp_path / "a.pack")
    summed = []
    real = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda *a: summed.append(1) or real(*a))
    pack = Pack.open(path)
    summed.clear()
    pack.verify_once()
    assert not summed, "the writer vouches for what it wrote"
    weights = path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DamagedFileError, match="altered"):
        pack.verify_once()
    assert summed
    data[-1] ^= 1
    weights.write_bytes(data)
    pack.verify_once()
    summed.clear()
    pack.verify_once()
    assert not summed


def test_an_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    Pack.open(write(tmp_path / "a.pack")).verify_once()


def test_markers_do_not_grow_without_end(tmp_path, monkeypatch):
    from haversack.core import _verified

    monkeypatch.setattr(_verified, "_MOST", 10)
    paths = [write(tmp_path / f"{i}.pack") for i in range(15)]
    markers = tmp_path / "cache" / "haversack" / "verified"
    assert 5 <= len(list(markers.iterdir())) <= 10
    assert Pack.open(paths[-1]).check() == []


def test_an_altered_file_is_not_handed_out(tmp_path):
    path = write(tmp_path / "a.pack", files={"tokenizer.json": b'{"a": 1}'})
    (path / "tokenizer.json").write_bytes(b'{"a": 2}')
    with pytest.raises(DamagedFileError):
        Pack.open(path).read_file("tokenizer.json")


def test_update_replaces_measurements_and_keeps_the_rest(tmp_path):
    pack = Pack.open(write(tmp_path / "a.pack", plan={"precision": "keep"}))
    changed = pack.update(measurements=[{"memory_mib": 3.5}])
    assert Pack.open(pack.path).record == changed.record
    assert changed.record.measurements == [{"memory_mib": 3.5}] and changed.record.plan == {
        "precision": "keep"
    }
    with pytest.raises(ValueError, match="tensors"):
        pack.update(tensors=())


def test_the_old_pack_stays_until_the_new_one_is_whole(tmp_path):
    path = write(tmp_path / "a.pack", plan={"precision": "old"})
    with pytest.raises(RuntimeError), PackWriter(path) as writer:
        writer.add_tensor("b", "u8", (2,), [b"ab"])
        raise RuntimeError
    assert Pack.open(path).record.plan == {"precision": "old"}
    write(path, plan={"precision": "new"})
    assert Pack.open(path).record.plan == {"precision": "new"}
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "cache"] == ["a.pack"]


def test_exchange_works_where_the_system_has_none(tmp_path, monkeypatch):
    from haversack.core import _files

    path = write(tmp_path / "a.pack", plan={"precision": "old"})
    monkeypatch.setattr(_files, "_exchange", lambda one, other: False)
    write(path, plan={"precision": "new"})
    assert Pack.open(path).record.plan == {"precision": "new"}
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "cache"] == ["a.pack"]


def test_nothing_but_a_pack_is_ever_replaced(tmp_path):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "draft.txt").write_text("years of work")
    with pytest.raises(UserError, match="is no pack"):
        write(precious)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="is no pack"):
        write(file)
    assert (precious / "draft.txt").read_text() == "years of work" and file.read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert Pack.open(write(tmp_path / "empty")).check() == []


def test_a_missing_parent_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        write(tmp_path / "nowhere" / "a.pack")


def test_a_disk_known_to_be_too_small_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="MiB free"), PackWriter(tmp_path / "a.pack", expected_bytes=2**60):
        pass
    assert not any(tmp_path.glob("a.pack*"))


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".hidden", "pack.json", "weights.safetensors", "x" * 300]
)
def test_file_names_stay_inside_the_pack(tmp_path, name):
    with pytest.raises(ValueError), PackWriter(tmp_path / "a.pack") as writer:
        writer.add_file(name, b"x")


def test_bytes_must_add_up(tmp_path):
    with pytest.raises(ValueError, match="needs 12 bytes and 11"), PackWriter(tmp_path / "a.pack") as writer:
        writer.add_tensor("a", "f32", (3,), [b"0123456789", b"0"])


def test_a_pack_with_a_torn_tensor_cannot_be_finished(tmp_path):
    path = write(tmp_path / "a.pack")
    with PackWriter(path) as writer:
        writer.add_tensor("a", "u8", (1,), [b"x"])
        with pytest.raises(ValueError, match="2 were given"):
            writer.add_tensor("b", "u8", (3,), [b"yz"])
        with pytest.raises(ValueError, match="not written whole"):
            writer.finish({})
    assert list(Pack.open(path).tensors) == ["a"] and check_pack(path) == []


def test_no_pack_is_told_from_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match="there is no pack"):
        Pack.open(tmp_path / "none")
    with pytest.raises(UserError, match="it has no pack"):
        Pack.open(tmp_path)


def test_packed_sizes_are_those_of_the_kernels():
    kernels = pytest.importorskip("haversack.kernels._matrix")
    for rows in (1, 15, 16, 17, 100):
        for columns in (1, 31, 32, 33, 128, 300):
            for group in (32, 64, 96, 128):
                for kind in ("int4", "int3"):
                    ours = nbytes_of(kind, (rows, columns), group, "rows16-1")
                    assert ours == kernels.packed_nbytes(kind, rows, columns, group)
            ours = nbytes_of("int8", (rows, columns), None, "rows16-1")
            assert ours == kernels.packed_nbytes("int8", rows, columns, None)


def test_a_newer_minor_is_read_and_another_major_refused(tmp_path):
    path = write(tmp_path / "a.pack")
    record = Pack.open(path).record
    for version, readable in (((1, 7), True), ((2, 0), False), ((0, 9), False)):
        (path / "pack.json").write_bytes(
            _record.encode_record(msgspec.structs.replace(record, format=version))
        )
        if readable:
            assert Pack.open(path).record.format == version
        else:
            with pytest.raises(DamagedFileError, match="haversack"):
                Pack.open(path)


def test_the_schema_describes_what_is_written(tmp_path):
    schema = pack_schema()
    written = json.loads((write(tmp_path / "a.pack") / "pack.json").read_text())
    fields = schema["$defs"]["PackRecord"]["properties"]
    assert set(written) == set(fields)
    assert set(written["tensors"][0]) == set(schema["$defs"]["TensorEntry"]["properties"])
