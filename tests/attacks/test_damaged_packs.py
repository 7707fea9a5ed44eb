"""Packs that were cut, flipped or forged: each is refused or found, in one sentence, without a crash."""

import json
import os
import random
import shutil
import struct

import msgspec
import pytest

from haversack.core import _record
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, check_pack


def copy_of(pack, tmp_path):
    shutil.rmtree(tmp_path / "attacked", ignore_errors=True)
    return shutil.copytree(pack, tmp_path / "attacked")


def assert_found(pack):
    """Check finds the damage, and opening refuses it in one sentence or gives a pack whose sums fail."""
    findings = check_pack(pack)
    assert findings and all("\n" not in str(finding) for finding in findings)
    try:
        opened = Pack.open(pack)
    except UserError as error:
        assert "\n" not in str(error) and str(error).count(str(pack)) == 1
        return
    with pytest.raises(DamagedFileError):
        opened.verify_once()


def offsets_of(file, count=40):
    size = file.stat().st_size
    return sorted({0, 1, 7, 8, size // 2, size - 1, *random.Random(0).sample(range(size), min(count, size))})


@pytest.mark.parametrize("name", ["pack.json", "weights.safetensors", "tokenizer.json"])
def test_any_flipped_bit_is_found(pack, tmp_path, name):
    for offset in offsets_of(pack / name):
        attacked = copy_of(pack, tmp_path)
        data = bytearray((attacked / name).read_bytes())
        data[offset] ^= 1 << (offset % 8)
        (attacked / name).write_bytes(data)
        assert_found(attacked)


@pytest.mark.parametrize("name", ["pack.json", "weights.safetensors", "tokenizer.json"])
def test_any_truncation_is_found(pack, tmp_path, name):
    for length in offsets_of(pack / name):
        attacked = copy_of(pack, tmp_path)
        os.truncate(attacked / name, length)
        assert_found(attacked)


@pytest.mark.parametrize("name", ["pack.json", "weights.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["appended", "absent", "folder", "empty", "link", "pipe"])
def test_a_file_of_another_kind_or_length_is_found(pack, tmp_path, name, how):
    attacked = copy_of(pack, tmp_path)
    file = attacked / name
    if how == "appended":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        original = file.read_bytes()
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "empty":
            file.write_bytes(b"")
        elif how == "link":
            (tmp_path / "elsewhere").write_bytes(original)
            file.symlink_to(tmp_path / "elsewhere")
        elif how == "pipe":
            os.mkfifo(file)
    if name == "pack.json" and how in ("absent", "folder", "pipe"):
        with pytest.raises(UserError, match=r"no pack"):
            Pack.open(attacked)
        with pytest.raises(UserError, match=r"no pack"):
            check_pack(attacked)
    elif name == "pack.json" and how == "link":
        assert not check_pack(attacked), "a record may be a link; the files it names may not"
    else:
        assert_found(attacked)


def forge(pack, **changes):
    """Write a record whose own checksum is right: the attacker knows the format."""
    record = msgspec.structs.replace(Pack.open(pack).record, **changes)
    (pack / "pack.json").write_bytes(_record.encode_record(record))


def tensor(pack, **changes):
    entries = Pack.open(pack).record.tensors
    forge(pack, tensors=(msgspec.structs.replace(entries[0], **changes), *entries[1:]))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (2**62, 2**62)},
        {"shape": (-1, -35)},
        {"shape": (35,)},
        {"shape": (1,) * 33},
        {"shape": (5, 7, 2**63)},
        {"nbytes": 2**60},
        {"nbytes": 0},
        {"offset": 2**62},
        {"offset": -4096},
        {"offset": 0},
        {"offset": 16385},
        {"file": "../../etc/passwd"},
        {"file": "tokenizer.json"},
        {"file": "pack.json"},
        {"kind": "f16"},
        {"kind": "f128"},
        {"kind": "int4"},
        {"layout": "rows16-1"},
        {"group": 64},
        {"name": "second"},
        {"name": "third"},
        {"name": ""},
        {"name": "x" * 2000},
    ],
)
def test_a_forged_tensor_is_refused(pack, changes):
    tensor(pack, **changes)
    with pytest.raises(DamagedFileError) as caught:
        Pack.open(pack)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert check_pack(pack)


@pytest.mark.parametrize(
    "files",
    [
        {"/etc/passwd": _record.FileEntry(10, 0, 0, (0,))},
        {"..": _record.FileEntry(10, 0, 0, (0,))},
        {"a\nb": _record.FileEntry(10, 0, 0, (0,))},
        {"big.bin": _record.FileEntry(2**62, 0, 0, (0,))},
        {"small.bin": _record.FileEntry(-1, 0, 0, ())},
        {"start.bin": _record.FileEntry(10, 20, 0, ())},
        {"absent.bin": _record.FileEntry(10, 0, 0, (0,))},
    ],
)
def test_a_forged_file_is_refused(pack, files):
    forge(pack, files={**Pack.open(pack).record.files, **files})
    with pytest.raises(DamagedFileError):
        Pack.open(pack)
    assert check_pack(pack)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"format":' + b"[" * 100_000,
        b'{"format":[1,0],"kind":"language"',
        b'{"format":[1,0],"kind":"spaceship"',
        b'{"format":"1.0","kind":"language"',
        b'{"format":[1,0],"kind":"language","tensors":{}',
        b'{"format":[99,0],"anything":true',
        b'{"format":[1,0],"kind":"language","plan":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"format":[1,0],"kind":"language","provenance":{"a":1e999}',
        b'{"format":[1,0],"kind":"language","provenance":{"a":"\xff"}',
        b'{"format":[1,0],"kind":"language","files":{"a":{"size":'
        + b"9" * 6000
        + b',"start":0,"head":0,"pieces":[]}}',
    ],
)
def test_a_forged_record_is_refused(pack, text):
    import zlib

    sealed = text + b',"crc32":"00000000"}'
    sealed = text + b',"crc32":"%08x"}' % zlib.crc32(sealed)
    (pack / "pack.json").write_bytes(sealed)
    with pytest.raises(DamagedFileError) as caught:
        Pack.open(pack)
    assert "\n" not in str(caught.value)
    (finding,) = check_pack(pack)
    assert finding.file == "pack.json"


def test_a_record_too_long_is_not_read(pack):
    with (pack / "pack.json").open("r+b") as file:
        file.truncate(2**33)  # sparse
    with pytest.raises(DamagedFileError, match="more than"):
        Pack.open(pack)


def test_a_swapped_header_is_found(pack):
    """Weights whose header claims other tensors of the same bytes."""
    data = bytearray((pack / "weights.safetensors").read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["first"]["shape"] = [7, 5]
    data[8 : 8 + length] = json.dumps(header).encode().ljust(length)
    (pack / "weights.safetensors").write_bytes(data)
    with pytest.raises(DamagedFileError, match="another thing"):
        Pack.open(pack)


def test_a_header_of_another_length_is_found(pack):
    data = bytearray((pack / "weights.safetensors").read_bytes())
    data[:8] = struct.pack("<Q", 2**63)
    (pack / "weights.safetensors").write_bytes(data)
    with pytest.raises(DamagedFileError, match="claims"):
        Pack.open(pack)
