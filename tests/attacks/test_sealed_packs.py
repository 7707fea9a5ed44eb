"""Sealed packs under attack: blocks moved, replayed and altered, records forged, versions turned back,
wrong keys.

The attacker may write any file of the pack and knows the formats, so every attack also mends the checksums
that anyone can compute. What is left is refused by `check --key` and by a run, in one sentence, before a
token.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tokenizers

from haversack.core._record import PIECE, FileEntry, encode_record
from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackRecord, PackWriter, check_pack
from haversack.formats.sealed import BLOCK, FRONT, TAG, check_sealed, seal
from haversack.models import read_architecture
from haversack.run import Engine

CONFIG = {
    "model_type": "llama",
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "vocab_size": 257,
}
KEY, OTHER = b"k" * 32, b"o" * 32
MAIN = "import sys; from haversack.cli import main; sys.exit(main())"
TOKENS = np.arange(3, 12, dtype=np.int32)


def plain_pack(path: Path, seed: int) -> Pack:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    numbers = np.random.default_rng(seed)
    with PackWriter(path) as writer:
        for name, shape in read_architecture(CONFIG).tensors().items():
            values = numbers.normal(float(len(shape) == 1), 0.2, shape).astype(np.float32)
            writer.add_tensor(name, "f32", shape, [values.tobytes()])
        writer.add_file("tokenizer.json", library.to_str().encode())
        writer.finish({"architecture": CONFIG, "plan": {"precision": "keep", "activations": "f32"}})
    return Pack.open(path)


class Packs:
    """Two versions of one pack and a pack of the same shapes, all under one key."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "owner.key"
        self.key.write_bytes(KEY)
        first, second = plain_pack(folder / "1.pack", 1), plain_pack(folder / "2.pack", 2)
        self.plain = first.path
        self.whole = seal(first, folder / "whole.pack", KEY, name="m", sealed=2000).path
        self.old = seal(second, folder / "old.pack", KEY, name="m", sealed=1000).path
        self.other = seal(second, folder / "other.pack", KEY, name="n", sealed=2000).path


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    return Packs(tmp_path_factory.mktemp("packs"))


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran before in other tests is not remembered."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def attacked(packs: Packs, tmp_path: Path) -> Path:
    return shutil.copytree(packs.whole, tmp_path / "attacked.pack")


def first_token(pack: Path, key: Path) -> None:
    with Engine.open(pack, residency="sealed", key=key) as engine:
        engine.step(TOKENS, cache=engine.cache(16))


def assert_refused(pack: Path, packs: Packs, match: str = "") -> None:
    """With its checksums mended, it is whole to anyone, and refused by whoever has the key."""
    mend(pack)
    assert not check_pack(pack)
    findings = check_sealed(pack, KEY)
    assert findings and all("\n" not in str(finding) for finding in findings)
    with pytest.raises(UserError, match=match) as refused:
        first_token(pack, packs.key)
    assert "\n" not in str(refused.value) and refused.value.exit_code == 2


def mend(pack: Path, **changes: Any) -> None:
    """Write a record whose sums of every file, and of itself, are right."""
    record = msgspec.json.decode((pack / "pack.json").read_bytes(), type=PackRecord)
    files = {}
    for name, entry in record.files.items():
        data = (pack / name).read_bytes()
        pieces = tuple(zlib.crc32(data[at : at + PIECE]) for at in range(entry.start, len(data), PIECE))
        files[name] = FileEntry(len(data), entry.start, zlib.crc32(data[: entry.start]), pieces)
    (pack / "pack.json").write_bytes(encode_record(msgspec.structs.replace(record, files=files, **changes)))


def store(pack: Path) -> bytearray:
    return bytearray((pack / "sealed.store").read_bytes())


def block_at(pack: Path, name: str, block: int) -> slice:
    start = Pack.open(pack).tensors[name].offset + block * (BLOCK + TAG)
    return slice(start, start + BLOCK + TAG)


UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"


def test_the_whole_pack_runs_and_is_authentic(packs: Packs) -> None:
    assert not check_sealed(packs.whole, KEY)
    with (
        Engine.open(packs.plain) as plain,
        Engine.open(packs.whole, residency="sealed", key=packs.key) as sealed,
    ):
        logits = [engine.step(TOKENS, cache=engine.cache(16))[0] for engine in (plain, sealed)]
        assert np.array_equal(*logits)


def swap_blocks(data: bytearray, pack: Path, packs: Packs) -> None:
    one, two = block_at(pack, UP, 0), block_at(pack, UP, 1)
    data[one], data[two] = data[two], data[one]


def swap_tensors(data: bytearray, pack: Path, packs: Packs) -> None:
    one, two = block_at(pack, UP, 0), block_at(pack, DOWN, 0)
    data[one], data[two] = data[two], data[one]


def repeat_a_block(data: bytearray, pack: Path, packs: Packs) -> None:
    data[block_at(pack, UP, 1)] = data[block_at(pack, UP, 0)]


def replay_a_version(data: bytearray, pack: Path, packs: Packs) -> None:
    data[block_at(pack, UP, 0)] = store(packs.old)[block_at(packs.old, UP, 0)]


def replay_a_pack(data: bytearray, pack: Path, packs: Packs) -> None:
    data[block_at(pack, UP, 0)] = store(packs.other)[block_at(packs.other, UP, 0)]


def all_weights_of_a_version(data: bytearray, pack: Path, packs: Packs) -> None:
    start = Pack.open(pack).record.files["sealed.store"].start
    data[start:] = store(packs.old)[start:]


def front_of_a_version(data: bytearray, pack: Path, packs: Packs) -> None:
    start = Pack.open(pack).record.files["sealed.store"].start
    data[:start] = store(packs.old)[:start]


def salt_of_a_version(data: bytearray, pack: Path, packs: Packs) -> None:
    data[:64] = store(packs.old)[:64]


def zeroed_tag(data: bytearray, pack: Path, packs: Packs) -> None:
    place = block_at(pack, UP, 1)
    data[place.stop - TAG : place.stop] = bytes(TAG)


@pytest.mark.parametrize(
    "attack",
    [
        swap_blocks,
        swap_tensors,
        repeat_a_block,
        replay_a_version,
        replay_a_pack,
        all_weights_of_a_version,
        front_of_a_version,
        salt_of_a_version,
        zeroed_tag,
    ],
    ids=lambda attack: attack.__name__,
)
def test_moved_and_replayed_blocks_are_refused(
    attack: Callable[[bytearray, Path, Packs], None], attacked: Path, packs: Packs
) -> None:
    data = store(attacked)
    attack(data, attacked, packs)
    (attacked / "sealed.store").write_bytes(data)
    assert_refused(attacked, packs, "damaged")


def test_any_flipped_bit_is_refused(attacked: Path, packs: Packs) -> None:
    """Of the front, and of blocks; the zeros between tensors mean nothing and are not looked at."""
    whole = store(attacked)
    front = FRONT.size + FRONT.unpack(whole[: FRONT.size])[2]
    places = [*random.Random(0).sample(range(front), 12), 0, 8, 12, 16, 47, 48, 63]
    for name in random.Random(1).sample(sorted(Pack.open(attacked).tensors), 8):
        entry = Pack.open(attacked).tensors[name]
        places.append(entry.offset + random.Random(name).randrange(entry.nbytes + TAG))
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        (attacked / "sealed.store").write_bytes(data)
        mend(attacked)
        try:
            assert check_sealed(attacked, KEY), place
        except UserError as refused:  # a flipped salt or check makes the key the wrong one
            assert 16 <= place < 64 and refused.field == "key"


@pytest.mark.parametrize("left", [0, 10, 63, 64, 5000, 100_000])
def test_a_truncated_store_is_refused(left: int, attacked: Path, packs: Packs) -> None:
    os.truncate(attacked / "sealed.store", left)
    assert check_pack(attacked)
    with pytest.raises(UserError, match="damaged"):
        first_token(attacked, packs.key)


def test_the_wrong_key_is_refused(packs: Packs, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_bytes(OTHER)
    with pytest.raises(UserError, match="not sealed with this key") as refused:
        first_token(packs.whole, tmp_path / "wrong")
    assert refused.value.field == "key"
    with pytest.raises(UserError, match="not sealed with this key"):
        check_sealed(packs.whole, OTHER)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": {**CONFIG, "rms_norm_eps": 1e-6}},
        {"activations": "int8-dynamic"},
        {"plan": {"precision": "keep", "activations": "f32", "residency": "sealed", "cache_type": "int8"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_forged_record_is_refused(changes: dict[str, Any], attacked: Path, packs: Packs) -> None:
    mend(attacked, **changes)
    with pytest.raises(UserError, match="not the record that was sealed"):
        first_token(attacked, packs.key)
    assert check_sealed(attacked, KEY)


def test_tensors_that_trade_names_are_refused(attacked: Path, packs: Packs) -> None:
    entries = list(Pack.open(attacked).record.tensors)
    one, two = (next(i for i, entry in enumerate(entries) if entry.name == name) for name in (UP, DOWN))
    names = entries[one].name, entries[two].name
    entries[one] = msgspec.structs.replace(entries[one], name=names[1])
    entries[two] = msgspec.structs.replace(entries[two], name=names[0])
    mend(attacked, tensors=tuple(entries))
    with pytest.raises(UserError, match="not the record that was sealed"):
        first_token(attacked, packs.key)


@pytest.mark.parametrize("how", ["altered", "removed", "added"])
def test_forged_files_beside_the_weights_are_refused(how: str, attacked: Path, packs: Packs) -> None:
    record = Pack.open(attacked).record
    if how == "altered":
        text = (attacked / "tokenizer.json").read_text()
        (attacked / "tokenizer.json").write_text(text + " ")
    elif how == "removed":
        (attacked / "tokenizer.json").unlink()
        files = {name: entry for name, entry in record.files.items() if name != "tokenizer.json"}
        (attacked / "pack.json").write_bytes(encode_record(msgspec.structs.replace(record, files=files)))
    else:
        (attacked / "generation_config.json").write_text('{"eos_token_id": 5}')
    mend(attacked)
    with pytest.raises(UserError, match=r"file that was sealed|cannot be read|when that was sealed"):
        first_token(attacked, packs.key)
    assert check_sealed(attacked, KEY)


def test_a_whole_older_version_is_refused_where_a_newer_ran(packs: Packs) -> None:
    first_token(packs.old, packs.key)
    first_token(packs.whole, packs.key)
    first_token(packs.other, packs.key)
    with pytest.raises(UserError, match="older version"):
        first_token(packs.old, packs.key)


def run(*line: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", MAIN, *map(str, line)], capture_output=True, text=True)


def refused_in_one_sentence(*line: str | Path, field: str | None = None) -> None:
    done = run(*line)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("haversack: ")
    assert done.stdout == ""
    if field is not None:
        assert json.loads(run(*line, "--json").stdout)["field"] == field


def test_commands_refuse_in_one_sentence(packs: Packs, attacked: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_bytes(OTHER)
    ask = ("--prompt", "def", "--max-tokens", "3")
    data = store(attacked)
    swap_blocks(data, attacked, packs)
    (attacked / "sealed.store").write_bytes(data)
    mend(attacked)
    refused_in_one_sentence("run", attacked, "--key", packs.key, *ask)
    refused_in_one_sentence("run", packs.whole, "--key", tmp_path / "wrong", *ask, field="key")
    refused_in_one_sentence("run", packs.whole, *ask, field="key")
    refused_in_one_sentence("run", packs.whole, "--residency", "mapped", *ask, field="residency")
    refused_in_one_sentence("run", packs.plain, "--residency", "sealed", "--key", packs.key, *ask)
    refused_in_one_sentence("run", packs.plain, "--key", packs.key, *ask, field="key")
    refused_in_one_sentence("export", packs.whole, "--to", "safetensors", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = run("check", attacked, "--key", packs.key)
    assert done.returncode == 2 and "1 finding" in done.stdout and "up_proj" in done.stdout
    assert run("check", attacked).returncode == 0  # its sums are right: only the key tells
    said = json.loads(run("check", packs.whole, "--key", packs.key, "--json").stdout)
    assert said["whole"] and said["authentic"]
