import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import TensorSource
from haversack.formats.safetensors import HubFolder, SafetensorsFile, parse_header, write_safetensors


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def folder_of(path, files):
    path.mkdir(exist_ok=True)
    for name, content in {"config.json": {"model_type": "llama"}, **files}.items():
        if content is not None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (path / name).write_bytes(data)
    return path


ONE = file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, struct.pack("<2f", 1, 2))
TWO = file_of({"b": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"xyz")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["float32", "float16", "int32", "uint8"]), st.lists(st.integers(0, 5), max_size=4)
        ),
        max_size=8,
    )
)
def test_files_of_the_reference_library_are_read_and_ours_by_it(arrays, tmp_path):
    made = {name: np.full(shape, 3, kind) for name, (kind, shape) in arrays.items()}
    theirs = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file(made, theirs, metadata={"note": "x"})
    read = SafetensorsFile.open(theirs)
    assert read.metadata == {"note": "x"}
    for name, array in made.items():
        assert bytes(read.bytes(name)) == array.tobytes() and read.tensors[name].shape == array.shape
    ours = tmp_path / "ours.safetensors"
    kinds = {"float32": "f32", "float16": "f16", "int32": "i32", "uint8": "u8"}
    write_safetensors(
        ours, [(name, kinds[str(a.dtype)], a.shape, a.tobytes()) for name, a in made.items()], {"note": "y"}
    )
    back = safetensors.numpy.load_file(ours)
    assert set(back) == set(made) and all(np.array_equal(back[name], made[name]) for name in made)
    assert SafetensorsFile.open(ours).tensors.keys() == made.keys()


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "U8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
FIELD = st.sampled_from(["dtype", "shape", "data_offsets"])
TENSOR = st.dictionaries(FIELD, JUNK, max_size=3) | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F8_E4M3", "X"]),
        "shape": st.lists(st.integers(-2, 2**64), max_size=3) | st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2),
    }
)


@settings(max_examples=300, deadline=None)
@given(header=st.dictionaries(st.text(max_size=5), TENSOR, max_size=3) | JUNK, size=st.integers(0, 64))
def test_the_parser_accepts_exactly_what_holds(header, size):
    text = json.dumps(header).encode()
    try:
        parsed = parse_header(text, size)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    at = parsed.data_start
    for entry in parsed.entries:  # whatever was accepted covers the data exactly
        assert entry.offset == at
        at += entry.nbytes
    assert at == parsed.data_start + size


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_the_parser_survives_any_bytes(text):
    try:
        parse_header(text, 0)
    except ValueError as error:
        assert "\n" not in str(error)


def test_one_file_and_several_files_give_the_same_source(tmp_path):
    folder = folder_of(
        tmp_path / "m",
        {
            "model-1.safetensors": ONE,
            "model-2.safetensors": TWO,
            "model.safetensors.index.json": {
                "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}
            },
            "tokenizer.json": b"{}",
        },
    )
    source = HubFolder.open(folder)
    assert isinstance(source, TensorSource)
    assert source.config == {"model_type": "llama"}
    assert bytes(source.bytes("b")) == b"xyz" and source.tensors["b"].file == "model-2.safetensors"
    assert [file.name for file in source.files] == ["model-1.safetensors", "model-2.safetensors"]
    single = HubFolder.open(folder_of(tmp_path / "s", {"model.safetensors": ONE}))
    assert single.files == (tmp_path / "s" / "model.safetensors",)
    assert struct.unpack("<2f", single.bytes("a")) == (1, 2)
    with pytest.raises(UserError) as caught:
        single.bytes("aa")
    assert caught.value.nearest == "a"


def test_types_no_method_reads_are_listed_not_refused(tmp_path):
    data = file_of({"ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8))
    assert HubFolder.open(folder_of(tmp_path / "m", {"model.safetensors": data})).tensors["ids"].kind == "i64"


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no model.safetensors"),
        ({"pytorch_model.bin": b"PK"}, "pickle"),
        ({"consolidated.00.pth": b"PK"}, "weights_only=True"),
        ({"adapter_config.json": {}, "adapter_model.safetensors": ONE}, "pack its base with --adapter"),
        ({"weights.safetensors": ONE}, "rename it"),
        ({"m.gguf": b"GGUF"}, "gguf"),
        ({"config.json": None, "model.safetensors": ONE}, "no config.json"),
        ({INDEX: {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}}, "lacks 2 of the 2"),
        ({"vocab.json": b"{}"}, "has no model.safetensors"),
    ],
)
def test_a_folder_that_lacks_something_says_what_to_do(tmp_path, files, said):
    with pytest.raises(UserError, match=said) as caught:
        HubFolder.open(folder_of(tmp_path / "m", files))
    assert not isinstance(caught.value, DamagedFileError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b"[" * 100_000}, "nested too deeply"),
        ({"config.json": b'{"a": 1, "a": 2}'}, "occurs twice"),
        ({"config.json": b"\xff\xfe"}, "not UTF-8"),
        ({"config.json": b"[]"}, "not a table"),
        ({"config.json": b'{"a": ' + b"9" * 5000 + b"}"}, "digits"),
        ({"config.json": b" " * (5 * 2**20)}, "longer than 4 MiB"),
        (
            {INDEX: {"weight_map": {"a": "../../etc/passwd.safetensors"}}, "model.safetensors": None},
            "no weight file",
        ),
        ({INDEX: {"weight_map": {"a": 3}}, "model.safetensors": None}, "no weight file"),
        ({INDEX: {"weight_map": []}, "model.safetensors": None}, "no weight_map"),
        (
            {INDEX: {"weight_map": {"c": "m.safetensors"}}, "m.safetensors": ONE, "model.safetensors": None},
            "promises is missing",
        ),
        (
            {
                INDEX: {"weight_map": {"a": "m.safetensors", "b": "n.safetensors"}},
                "m.safetensors": ONE,
                "n.safetensors": file_of(
                    {
                        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                        "b": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
                    },
                    b"xy",
                ),
                "model.safetensors": None,
            },
            "is also in",
        ),
    ],
)
def test_a_damaged_folder_names_the_file_and_the_finding(tmp_path, files, said):
    with pytest.raises(DamagedFileError, match=said) as caught:
        HubFolder.open(folder_of(tmp_path / "m", {"model.safetensors": ONE, **files}))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_path_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(ONE)
    with pytest.raises(UserError, match="give the folder"):
        HubFolder.open(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        HubFolder.open(tmp_path / "none")
