"""GGUF files made to crash a reader: each is refused in one sentence, quickly, in little memory."""

import random
import struct
import time
import tracemalloc

import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.gguf import GgufFile, TensorOut, write_gguf_file

STRING, ARRAY, U32, U8, F32 = 8, 9, 4, 0, 0


def text(value, length=None):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def tensor(name="a", sizes=(2,), kind=F32, offset=0, count=None):
    dimensions = struct.pack("<I", len(sizes) if count is None else count) + struct.pack(
        f"<{len(sizes)}Q", *sizes
    )
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def made(keys=(), tensors=(), data=bytes(64), *, version=3, tensor_count=None, key_count=None, magic=b"GGUF"):
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    body = head + b"".join(keys) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + data


def nested(depth):
    head = b"".join(struct.pack("<IQ", ARRAY, 1) for _ in range(depth))
    return key("k", ARRAY, head + struct.pack("<IQ", U8, 0))


FILES = {
    "empty": b"",
    "three-bytes": b"GGU",
    "magic-only": b"GGUF",
    "another-magic": made(magic=b"GGML"),
    "no-counts": b"GGUF" + struct.pack("<I", 3),
    "version-1": made(version=1),
    "version-4": made(version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "tensors-of-2^60": made(tensor_count=2**60),
    "keys-of-2^60": made(key_count=2**60),
    "all-ones": b"GGUF" + struct.pack("<I", 3) + b"\xff" * 16,
    "one-key-too-many": made([key("k", U32, bytes(4))], key_count=2, data=b""),
    "name-of-2^60": made([text("k", 2**60) + bytes(40)], key_count=1),
    "name-of-2^64-1": made([text("k", 2**64 - 1) + bytes(40)], key_count=1),
    "name-beyond-file": made([text("k", 900) + bytes(40)], key_count=1),
    "text-of-2^60": made([text("k") + struct.pack("<I", STRING) + text("", 2**60) + bytes(40)], key_count=1),
    "text-beyond-file": made([text("k") + struct.pack("<I", STRING) + text("", 5000)], key_count=1),
    "name-not-utf-8": made([key(b"\xff\xfe", U32, bytes(4))]),
    "text-not-utf-8": made([key("k", STRING, text(b"\xff\xfe"))]),
    "key-twice": made([key("k", U32, bytes(4)), key("k", U32, bytes(4))]),
    "unknown-value-type": made([key("k", 13, bytes(8))]),
    "flag-of-2": made([key("k", 7, b"\2")]),
    "array-of-2^60": made([key("k", ARRAY, struct.pack("<IQ", U8, 2**60))]),
    "array-of-2^61-u64": made([key("k", ARRAY, struct.pack("<IQ", 10, 2**61))]),
    "array-that-wraps": made([key("k", ARRAY, struct.pack("<IQ", 10, 2**61 + 1))]),
    "array-of-2^60-texts": made([key("k", ARRAY, struct.pack("<IQ", STRING, 2**60))]),
    "array-of-2^60-arrays": made([key("k", ARRAY, struct.pack("<IQ", ARRAY, 2**60))]),
    "array-of-unknown": made([key("k", ARRAY, struct.pack("<IQ", 99, 1) + bytes(8))]),
    "array-beyond-file": made([key("k", ARRAY, struct.pack("<IQ", U32, 1000))]),
    "text-in-array-of-2^60": made([key("k", ARRAY, struct.pack("<IQ", STRING, 1) + text("", 2**60))]),
    "text-in-array-beyond-file": made([key("k", ARRAY, struct.pack("<IQ", STRING, 1) + text("", 9999))]),
    "nested": made([nested(50)]),
    "nested-deep": made([nested(100_000)]),
    "alignment-0": made([key("general.alignment", U32, struct.pack("<I", 0))]),
    "alignment-24": made([key("general.alignment", U32, struct.pack("<I", 24))]),
    "alignment-2^31": made([key("general.alignment", U32, struct.pack("<I", 2**31))]),
    "alignment-text": made([key("general.alignment", STRING, text("32"))]),
    "tensor-without-name": made(tensors=[tensor("")]),
    "tensor-twice": made(tensors=[tensor("a"), tensor("a", offset=32)]),
    "no-dimensions": made(tensors=[tensor(sizes=())]),
    "dimensions-of-2^32-1": made(tensors=[tensor(count=2**32 - 1)]),
    "five-dimensions": made(tensors=[tensor(sizes=(1, 1, 1, 1, 1))]),
    "zero-numbers": made(tensors=[tensor(sizes=(0, 2**60))]),
    "shape-bomb": made(tensors=[tensor(sizes=(2**47, 2**47, 2**47))]),
    "shape-that-wraps": made(tensors=[tensor(sizes=(2**62 + 2,))]),
    "shape-that-wraps-in-product": made(tensors=[tensor(sizes=(2**33, 2**33))]),
    "unknown-number-type": made(tensors=[tensor(kind=200)]),
    "withdrawn-number-type": made(tensors=[tensor(kind=4)]),
    "half-a-block": made(tensors=[tensor(sizes=(48,), kind=2)]),
    "offset-unaligned": made(tensors=[tensor(offset=8)]),
    "offset-of-2^60": made(tensors=[tensor(offset=2**60)]),
    "offset-of-2^64-32": made(tensors=[tensor(offset=2**64 - 32)]),
    "beyond-file": made(tensors=[tensor(sizes=(17,))], data=bytes(64)),
    "overlap": made(tensors=[tensor("a", (16,)), tensor("b", (8,), offset=32)], data=bytes(64)),
    "the-same-place": made(tensors=[tensor("a"), tensor("b")]),
    "no-data": made(tensors=[tensor()], data=b""),
}


@pytest.mark.parametrize("name", FILES)
def test_is_refused_in_one_sentence(tmp_path, name):
    path = tmp_path / "x.gguf"
    path.write_bytes(FILES[name])
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises(DamagedFileError) as refused:
        GgufFile.open(path)
    seconds = time.monotonic() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(refused.value) and str(refused.value).count(str(path)) == 1
    assert seconds < 2 and peak < 8 * 2**20


def good(path):
    metadata = {
        "general.architecture": ("string", "llama"),
        "t": ("[string]", ["a", "bc", "def"] * 40),
        "n": ("[f32]", [1.0] * 100),
        "u": ("u64", 2**40),
    }
    tensors = [
        TensorOut("a", "f32", (4, 8), lambda: [bytes(128)]),
        TensorOut("b", "q4_0", (4, 64), lambda: [bytes(4 * 2 * 18)]),
    ]
    write_gguf_file(path, metadata, tensors)
    return path.read_bytes()


def opens_or_refuses(path):
    """A reader that survives: it refuses in one sentence, or what it gives can be read to the end."""
    try:
        file = GgufFile.open(path)
        for name in file.tensors:
            bytes(file.bytes(name))
        for name in file.metadata:
            list(file.texts(name))
            file.numbers(name)
    except UserError as error:
        assert "\n" not in str(error)
        return False
    return True


def test_any_truncation_is_refused(tmp_path):
    path = tmp_path / "x.gguf"
    data = good(path)
    last = len(data) - 16  # behind the last tensor lies padding
    for length in [*range(0, last, 7), last - 1]:
        path.write_bytes(data[:length])
        assert not opens_or_refuses(path), length


def test_no_flipped_bit_crashes(tmp_path):
    path = tmp_path / "x.gguf"
    data = good(path)
    draw = random.Random(0)
    for _ in range(1500):
        attacked = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            attacked[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(attacked)
        opens_or_refuses(path)


def test_no_random_bytes_crash(tmp_path):
    path = tmp_path / "x.gguf"
    draw = random.Random(1)
    for _ in range(400):
        path.write_bytes(
            b"GGUF" + struct.pack("<IQQ", 3, draw.randrange(4), draw.randrange(6)) + draw.randbytes(300)
        )
        opens_or_refuses(path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "x.gguf"
    data = good(path)
    file = GgufFile.open(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedFileError):
        file.bytes("b")


def test_a_folder_and_an_absent_file(tmp_path):
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(UserError, match="cannot be read"):
            GgufFile.open(path)
