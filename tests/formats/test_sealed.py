"""Sealed stores: what was put in comes out under the key, block by block, and says nothing without it."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.formats._sealed_versions import Versions
from haversack.formats.sealed import (
    ALIGNMENT,
    BLOCK,
    TAG,
    Sealer,
    Vault,
    associated,
    blocks_of,
    check_sealed,
    nonce,
    plain_span,
    read_key,
    record_bytes,
    seal,
    stored_span,
)

KEY = bytes(range(32))


def write(path: Path, tensors: dict[str, bytes], key: bytes = KEY, sealed: int | None = None) -> Pack:
    with PackWriter(path, sealer=Sealer(key, path.name, sealed)) as writer:
        for name, data in tensors.items():
            pieces = [data[at : at + 50_000] for at in range(0, len(data), 50_000)]
            writer.add_tensor(name, "u8", (len(data),), pieces)
        writer.add_file("tokenizer.json", b"{}")
        writer.finish({"architecture": {"model_type": "none", "rms_norm_eps": 1e-05}, "plan": {"a": "b"}})
    return Pack.open(path)


def opened(pack: Pack, key: bytes = KEY) -> Vault:
    return Vault.open(pack.path, key, record_bytes(pack.record))


def restored(pack: Pack, name: str, key: bytes = KEY) -> bytes:
    vault = opened(pack, key)
    place, whole = vault.places[name], b""
    with vault.path.open("rb") as file:
        for block in range(blocks_of(place.nbytes)):
            offset, count = place.stored(block, 1)
            file.seek(offset)
            plain = bytearray(plain_span(block, place.nbytes)[1])
            vault.open_block(place, block, file.read(count), memoryview(plain))
            whole += plain
    return whole


@settings(max_examples=25, deadline=None)
@given(
    some.lists(
        some.one_of(
            some.integers(0, 300), some.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_was_sealed_comes_out(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    tensors = {f"t{i}": os.urandom(size) for i, size in enumerate(sizes)}
    pack = write(folder / "a.pack", tensors)
    assert pack.sealed
    for name, data in tensors.items():
        assert restored(pack, name) == data
        assert pack.tensors[name].offset % ALIGNMENT == 0
    assert check_pack(pack.path) == check_sealed(pack.path) == check_sealed(pack.path, KEY) == []


def test_nothing_of_the_weights_is_readable(tmp_path: Path) -> None:
    """No run of 64 bytes of the weights in any file, and what is there cannot be compressed."""
    data = bytes(np.tile(np.arange(251, dtype=np.uint8), 2000))
    pack = write(tmp_path / "a.pack", {"w": data})
    files = [path.read_bytes() for path in pack.path.iterdir()]
    assert not any(data[at : at + 64] in file for file in files for at in range(251))
    stored = (pack.path / "sealed.store").read_bytes()[pack.tensors["w"].offset :][: len(data)]
    assert len(zlib.compress(stored, 9)) > 0.99 * len(stored)


def test_the_same_weights_are_sealed_differently_each_time(tmp_path: Path) -> None:
    first = write(tmp_path / "a.pack", {"w": bytes(BLOCK)})
    second = write(tmp_path / "b.pack", {"w": bytes(BLOCK)})
    stores = [
        (pack.path / "sealed.store").read_bytes()[pack.tensors["w"].offset :] for pack in (first, second)
    ]
    assert stores[0] != stores[1]


def test_no_two_blocks_share_a_nonce_or_a_place() -> None:
    places = [(tensor, block) for tensor in (0, 1, 2**32 - 2) for block in (0, 1, 2**40)]
    assert len({nonce(*place) for place in places}) == len(places)
    said = {associated(salt, name, 1, block, size) for salt in (bytes(32), b"\1" * 32) for name in ("a", "b")
            for block in (0, 1) for size in (10, 11)}  # fmt: skip
    assert len(said) == 16


@given(some.integers(0, 5 * BLOCK), some.data())
def test_spans_add_up(nbytes: int, data: some.DataObject) -> None:
    """The stored blocks follow one another and are their plain bytes and a tag each."""
    at = 0
    for block in range(blocks_of(nbytes)):
        start, count = stored_span(block, 1, nbytes)
        assert start == at
        assert count == plain_span(block, nbytes)[1] + TAG
        at += count
    assert stored_span(0, blocks_of(nbytes), nbytes) == (0, at)


def test_weights_of_a_sealed_pack_are_not_handed_out(tmp_path: Path) -> None:
    pack = write(tmp_path / "a.pack", {"w": b"abc"})
    with pytest.raises(UserError, match="is sealed"):
        pack.bytes("w")


def test_keys(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(KEY)
    (tmp_path / "hex").write_text(KEY.hex() + "\n")
    assert read_key(tmp_path / "raw") == read_key(tmp_path / "hex") == KEY
    for data in (b"", b"short", KEY + b"\0", b"zz" * 32, b"0" * 63, bytes(1000)):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(UserError, match="is no key") as refused:
            read_key(tmp_path / "bad")
        assert refused.value.field == "key" and "openssl rand" in str(refused.value)
    with pytest.raises(UserError, match="there is no key"):
        read_key(tmp_path / "absent")


def test_sealing_a_pack_keeps_all_of_it(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "plain.pack") as writer:
        writer.add_tensor("m.base", "f32", (2, 3), [bytes(range(24))])
        writer.add_form("m", {"form": "gated", "shape": [2, 3], "threshold": 0.5})
        writer.add_tensor("n", "f32", (2,), [bytes(8)])
        writer.add_file("tokenizer.json", b"{}")
        writer.finish({"architecture": {"a": 1}, "plan": {"residency": "mapped"}, "provenance": {"b": 2}})
    plain = Pack.open(tmp_path / "plain.pack")
    pack = seal(plain, tmp_path / "sealed.pack", KEY)
    assert pack.record.architecture == plain.record.architecture and pack.forms == plain.forms
    assert pack.record.plan == {"residency": "sealed"} and pack.record.provenance == {"b": 2}
    assert {name: e.shape for name, e in pack.tensors.items()} == {
        n: e.shape for n, e in plain.tensors.items()
    }
    assert {path.name for path in pack.path.iterdir()} == {"pack.json", "sealed.store", "tokenizer.json"}
    assert all(restored(pack, name) == bytes(plain.bytes(name)) for name in plain.tensors)
    with pytest.raises(UserError, match="already"):
        seal(pack, tmp_path / "again.pack", KEY)


def test_many_tensors_move_the_data_behind_a_longer_front(tmp_path: Path) -> None:
    """A front longer than what is reserved (by its files) moves the weights; they prove themselves still."""
    with PackWriter(tmp_path / "a.pack", sealer=Sealer(KEY, "a")) as writer:
        writer.add_tensor("w", "u8", (3 * BLOCK,), [bytes(range(256)) * (3 * BLOCK // 256)])
        for i in range(200):
            writer.add_file(f"file-{i:03d}-{'x' * 80}.txt", b"text")
        writer.finish({})
    pack = Pack.open(tmp_path / "a.pack")
    assert pack.record.files["sealed.store"].start > 16384
    assert check_pack(pack.path) == check_sealed(pack.path, KEY) == []
    assert restored(pack, "w") == bytes(range(256)) * (3 * BLOCK // 256)


def test_older_versions_are_refused(tmp_path: Path) -> None:
    old, new = (
        write(tmp_path / f"{at}" / "a.pack", {"w": b"x"}, sealed=at) for at in _made(tmp_path, 1000, 2000)
    )
    other = write(tmp_path / "b.pack", {"w": b"x"}, sealed=10)
    versions = Versions(KEY, tmp_path / "seen")
    for pack in (old, old, new, new, other):
        versions.admit(opened(pack))
    with pytest.raises(UserError, match=r"older version of a\.pack") as refused:
        versions.admit(opened(old))
    (path,) = [one for one in (tmp_path / "seen").iterdir() if "2000" in one.read_text()]
    assert str(path) in str(refused.value)
    text = path.read_text()
    path.write_text(text.replace("2000", "1000"))  # whoever has no key cannot turn it back
    with pytest.raises(UserError, match="damaged"):
        versions.admit(opened(old))
    path.unlink()
    versions.admit(opened(old))


def _made(folder: Path, *numbers: int) -> tuple[int, ...]:
    for number in numbers:
        (folder / str(number)).mkdir()
    return numbers
