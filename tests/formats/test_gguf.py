"""GGUF files: what is written is read, by us and by the format's own package, and every number is exact."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.formats._gguf_blocks import DEQUANTIZERS, dequantize
from haversack.formats._gguf_types import BY_NAME, TYPES
from haversack.formats.gguf import GgufArray, GgufFile, TensorOut, write_gguf_file

NUMBERS = {
    "u8": (0, 255),
    "i8": (-128, 127),
    "u16": (0, 65535),
    "i16": (-32768, 32767),
    "u32": (0, 2**32 - 1),
    "i32": (-(2**31), 2**31 - 1),
    "u64": (0, 2**64 - 1),
    "i64": (-(2**63), 2**63 - 1),
}
TEXT = st.text(max_size=30)
SCALARS = st.one_of(
    *(st.tuples(st.just(kind), st.integers(*ends)) for kind, ends in NUMBERS.items()),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("string"), TEXT),
    st.tuples(st.just("f32"), st.floats(width=32, allow_nan=False)),
    st.tuples(st.just("f64"), st.floats(allow_nan=False)),
)
ARRAYS = st.one_of(
    *(
        st.tuples(st.just(f"[{kind}]"), st.lists(st.integers(*ends), max_size=40))
        for kind, ends in NUMBERS.items()
    ),
    st.tuples(st.just("[string]"), st.lists(TEXT, max_size=40)),
    st.tuples(st.just("[f32]"), st.lists(st.floats(width=32, allow_nan=False), max_size=40)),
)
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


def value_of(file: GgufFile, key: str) -> object:
    value = file.metadata[key]
    if not isinstance(value, GgufArray):
        return value
    numbers = file.numbers(key)
    return list(file.texts(key)) if numbers is None else numbers.tolist()


@settings(max_examples=80, deadline=None)
@given(
    metadata=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda key: key != "general.alignment"),
        SCALARS | ARRAYS,
        max_size=8,
    ),
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=20),
        st.tuples(st.sampled_from(sorted(BY_NAME)), SHAPES, st.integers(1, 3)),
        max_size=6,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_written_is_read(tmp_path_factory, metadata, shapes, seed):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    rng = np.random.default_rng(seed)
    held, tensors = {}, []
    for name, (kind, outer, blocks) in shapes.items():
        shape = (*outer, blocks * BY_NAME[kind].numbers)
        data = held[name] = rng.bytes(math.prod(shape) // BY_NAME[kind].numbers * BY_NAME[kind].nbytes)
        tensors.append(TensorOut(name, kind, shape, lambda data=data: [data[:7], data[7:]]))
    assert write_gguf_file(path, metadata, tensors) == path.stat().st_size
    file = GgufFile.open(path)
    assert file.version == 3 and list(file.tensors) == list(shapes) and file.files == (path,)
    assert {key: value_of(file, key) for key in metadata} == {k: v for k, (_, v) in metadata.items()}
    for tensor in tensors:
        entry = file.tensors[tensor.name]
        assert (entry.kind, entry.shape, entry.nbytes) == (tensor.kind, tensor.shape, tensor.nbytes)
        assert entry.offset % 32 == 0 and bytes(file.bytes(tensor.name)) == held[tensor.name]


def by_the_package(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_bool("a.flag", True)
    writer.add_token_list(["<s>", "a", "ü\n", ""])
    writer.add_token_scores([0.0, -1.5, 2.0, 3.0])
    writer.add_array("numbers", [1, 2, 3])
    rng = np.random.default_rng(0)
    writer.add_tensor("f16", rng.standard_normal((3, 5)).astype(np.float16))
    values = rng.standard_normal((4, 64)).astype(np.float32)
    for kind in ("Q8_0", "Q4_0"):
        of_type = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quants.quantize(values, of_type), raw_dtype=of_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_reads_what_the_package_writes(tmp_path):
    path = tmp_path / "x.gguf"
    by_the_package(path)
    file, package = GgufFile.open(path), gguf.GGUFReader(path)
    assert file.metadata["llama.context_length"] == 512 and file.metadata["a.flag"] is True
    assert list(file.texts("tokenizer.ggml.tokens")) == ["<s>", "a", "ü\n", ""]
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 4 and tokens[2] == "ü\n"
    with pytest.raises(IndexError):
        tokens[4]
    assert file.numbers("tokenizer.ggml.scores").tolist() == [0.0, -1.5, 2.0, 3.0]
    for tensor in package.tensors:
        entry = file.tensors[tensor.name]
        assert entry.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert bytes(file.bytes(tensor.name)) == tensor.data.tobytes()


def test_the_package_reads_what_is_written(tmp_path):
    path = tmp_path / "x.gguf"
    values = np.arange(64, dtype="<f4").reshape(2, 32)
    tensors = [TensorOut("a", "f32", (2, 32), lambda: [values.data])]
    metadata = {
        "general.architecture": ("string", "llama"),
        "t": ("[string]", ["x", "y z"]),
        "n": ("f32", 0.5),
    }
    write_gguf_file(path, metadata, tensors)
    package = gguf.GGUFReader(path)
    assert package.fields["t"].contents() == ["x", "y z"] and package.fields["n"].contents() == 0.5
    assert np.array_equal(package.tensors[0].data, values)


def test_version_2_is_read(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf_file(path, {"k": ("u32", 7)}, [TensorOut("a", "f32", (2,), lambda: [bytes(8)])])
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    path.write_bytes(data)
    assert GgufFile.open(path).version == 2


@pytest.mark.parametrize("kind", sorted(DEQUANTIZERS))
def test_every_type_gives_the_numbers_that_the_package_gives(kind):
    rng = np.random.default_rng(1)
    of_type = BY_NAME[kind]
    raw = rng.integers(0, 256, (500, of_type.nbytes), dtype=np.uint8)
    got = dequantize(kind, raw.tobytes(), (500, of_type.numbers))
    if kind == "q8_k":  # the package leaves it out
        with np.errstate(all="ignore"):
            expected = raw[:, 4:260].view(np.int8) * raw[:, :4].copy().view("<f4")
    else:
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(of_type.code))
    assert np.array_equal(got, expected, equal_nan=True)


def test_sizes_are_those_of_the_package():
    for code, of_type in TYPES.items():
        expected = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(code)]
        assert (of_type.numbers, of_type.nbytes) == expected


def test_a_type_without_a_function_is_named():
    with pytest.raises(UserError, match="IQ1_S are not read"):
        dequantize("iq1_s", bytes(50), (1, 256))


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def broken() -> list[bytes]:
        raise RuntimeError("in the middle")

    goal = tmp_path / "x.gguf"
    goal.write_bytes(b"before")
    with pytest.raises(RuntimeError):
        write_gguf_file(goal, {}, [TensorOut("a", "f32", (2,), broken)])
    with pytest.raises(ValueError, match="takes 8 bytes and was given 4"):
        write_gguf_file(goal, {}, [TensorOut("a", "f32", (2,), lambda: [bytes(4)])])
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"] and goal.read_bytes() == b"before"


def test_an_unknown_tensor_names_the_nearest(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf_file(path, {}, [TensorOut("blk.0.attn_q.weight", "f32", (2,), lambda: [bytes(8)])])
    with pytest.raises(UserError, match=r"nearest is blk\.0\.attn_q\.weight"):
        GgufFile.open(path).bytes("blk.0.attn_k.weight")
