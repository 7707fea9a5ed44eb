"""Families: what the hash covers, where it stands, how another anchor is found out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from haversack.core._record import FORMAT, decode_record, encode_record
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.formats.safetensors import HubFolder, write_safetensors
from haversack.models import read_architecture
from haversack.models._family import (
    FamilyEntry,
    anchor_sha256,
    anchor_tensors,
    declared_family,
    family_json,
    family_of,
    make_family,
    require_family,
)


def opened(folder: Path) -> tuple[HubFolder, Any]:
    source = HubFolder.open(folder)
    return source, read_architecture(source.config)


def rewritten(base: Path, goal: Path, change: Any = None, config: dict[str, Any] | None = None) -> Path:
    """`base` again, its tensors in another order; `change` maps (name, kind, shape, bytes) to the same."""
    source = HubFolder.open(base)
    goal.mkdir()
    (goal / "config.json").write_text(json.dumps({**source.config, **(config or {})}))
    tensors = [(e.name, e.kind, e.shape, bytes(source.bytes(e.name))) for e in source.tensors.values()]
    changed = [each if change is None else change(*each) for each in reversed(tensors)]
    write_safetensors(goal / "model.safetensors", [each for each in changed if each is not None])
    return goal


def flipped(which: str) -> Any:
    def change(name: str, kind: str, shape: tuple[int, ...], data: bytes) -> Any:
        return name, kind, shape, bytes([data[0] ^ 1]) + data[1:] if name == which else data

    return change


def test_the_hash_is_the_documented_one(base: Path) -> None:
    """docs/format.md, written down a second time."""
    source, architecture = opened(base)
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [name for name in source.tensors if name.startswith("model.layers.0.")]
    found = hashlib.sha256(b"haversack-anchor-1\n")
    for name in sorted(names):
        entry = source.tensors[name]
        found.update(f"{name} F32 {'x'.join(map(str, entry.shape))}\n".encode())
        found.update(bytes(source.bytes(name)))
    assert anchor_sha256(source, architecture, 1) == found.hexdigest()
    assert make_family(source, architecture) == FamilyEntry(
        name="t0", anchor_sha256=found.hexdigest(), anchor_layers=1
    )


def test_order_and_upper_blocks_do_not_matter(base: Path, tmp_path: Path) -> None:
    plain = anchor_sha256(*opened(base), 2)
    same = rewritten(base, tmp_path / "a", flipped("model.layers.2.mlp.up_proj.weight"))
    assert anchor_sha256(*opened(same), 2) == plain
    assert anchor_sha256(*opened(same), 3) != anchor_sha256(*opened(base), 3)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_one_bit_of_the_anchor_matters(base: Path, tmp_path: Path, name: str) -> None:
    other = rewritten(base, tmp_path / "a", flipped(name))
    assert anchor_sha256(*opened(other), 2) != anchor_sha256(*opened(base), 2)


def test_the_number_type_matters(base: Path, tmp_path: Path) -> None:
    def halves(name: str, kind: str, shape: tuple[int, ...], data: bytes) -> Any:
        return name, "f16", shape, np.frombuffer(data, "<f4").astype("<f2").tobytes()

    assert anchor_sha256(*opened(rewritten(base, tmp_path / "a", halves)), 1) != anchor_sha256(
        *opened(base), 1
    )


def test_a_tied_head_counts_once_whether_or_not_the_file_repeats_it(base: Path, tmp_path: Path) -> None:
    tied = {"tie_word_embeddings": True}
    repeated = rewritten(base, tmp_path / "a", None, tied)
    alone = rewritten(base, tmp_path / "b", lambda *one: None if one[0] == "lm_head.weight" else one, tied)
    architecture = opened(alone)[1]
    assert "lm_head.weight" not in anchor_tensors(architecture, 1)
    assert anchor_sha256(*opened(repeated), 1) == anchor_sha256(*opened(alone), 1)
    assert anchor_sha256(*opened(alone), 1) != anchor_sha256(*opened(base), 1)


@pytest.mark.parametrize("layers", [0, -1, 4, 9])
def test_an_anchor_leaves_a_block_above(base: Path, layers: int) -> None:
    with pytest.raises(UserError, match="allowed 1 to 3") as refused:
        anchor_sha256(*opened(base), layers)
    assert refused.value.nearest in (1, 3)


def test_a_full_fine_tune_is_found_out(base: Path, tmp_path: Path) -> None:
    family = make_family(*opened(base), 1)
    (tmp_path / "a").mkdir()
    kept = rewritten(base, tmp_path / "a" / "t0", flipped("model.layers.3.mlp.down_proj.weight"))
    (kept / "family.json").write_text(family_json(family))
    assert family_of(*opened(kept)) == family
    trained = rewritten(base, tmp_path / "b", flipped("model.layers.0.mlp.down_proj.weight"))
    (trained / "family.json").write_text(family_json(family))
    assert declared_family(opened(trained)[0]) == family
    with pytest.raises(UserError, match=r"has another anchor .* needs a new draft") as refused:
        family_of(*opened(trained))
    assert refused.value.nearest == family.anchor_sha256
    smaller = rewritten(base, tmp_path / "c", None, {"num_hidden_layers": 1})
    with pytest.raises(UserError, match="is of another family"):
        require_family(*opened(smaller), family, "the draft")


@pytest.mark.parametrize(
    "document",
    [
        "no json",
        "[]",
        '{"format": 2, "name": "a", "anchor_sha256": "' + "0" * 64 + '", "anchor_layers": 1}',
        '{"format": 1, "name": "a", "anchor_sha256": "' + "g" * 64 + '", "anchor_layers": 1}',
        '{"format": 1, "name": "a", "anchor_sha256": "' + "0" * 64 + '", "anchor_layers": 0}',
        '{"format": 1, "name": "a", "anchor_sha256": "' + "0" * 64 + '", "anchor_layers": "1"}',
        '{"format": 1, "name": "", "anchor_sha256": "' + "0" * 64 + '", "anchor_layers": 1}',
        '{"format": 1, "name": "a", "anchor_layers": 1}',
    ],
)
def test_a_family_file_that_is_none(base: Path, tmp_path: Path, document: str) -> None:
    folder = rewritten(base, tmp_path / "a")
    (folder / "family.json").write_text(document)
    with pytest.raises(DamagedFileError, match="describes no family"):
        declared_family(opened(folder)[0])


def packed(base: Path, goal: Path, family: FamilyEntry | None) -> Pack:
    source = HubFolder.open(base)
    with PackWriter(goal) as writer:
        for name, entry in source.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)])
        writer.finish({"architecture": source.config, "family": family})
    return Pack.open(goal)


def test_a_pack_carries_it(base: Path, tmp_path: Path) -> None:
    family = make_family(*opened(base), 2, "cloud")
    pack = packed(base, tmp_path / "a.pack", family)
    assert pack.record.format == FORMAT == (1, 5)
    assert declared_family(pack) == family and pack.check() == []
    require_family(pack, opened(base)[1], family, "the draft")
    other = msgspec.structs.replace(family, anchor_sha256="0" * 64)
    with pytest.raises(UserError, match="has another anchor"):
        require_family(pack, opened(base)[1], other, "the draft")
    fewer = msgspec.structs.replace(family, anchor_layers=1)
    with pytest.raises(UserError, match="has another anchor"):
        require_family(pack, opened(base)[1], fewer, "the draft")
    plain = packed(base, tmp_path / "b.pack", None)
    with pytest.raises(UserError, match="pack the target with --family"):
        require_family(plain, opened(base)[1], family, "the draft")


def test_records_before_families_are_read_and_bad_ones_refused(base: Path, tmp_path: Path) -> None:
    record = packed(base, tmp_path / "a.pack", None).record
    older = json.loads(encode_record(record))
    del older["family"]
    older["format"] = [1, 3]
    text = json.dumps({**older, "crc32": "0" * 8}, separators=(",", ":")).encode()
    import zlib

    sealed = text.replace(b'"crc32":"00000000"', b'"crc32":"%08x"' % zlib.crc32(text))
    assert decode_record(sealed).family is None
    bad = FamilyEntry(name="a", anchor_sha256="short", anchor_layers=1)
    with pytest.raises(ValueError, match="64 lower-case"):
        decode_record(encode_record(msgspec.structs.replace(record, family=bad)))


def test_packed_weights_have_no_hash(base: Path, tmp_path: Path) -> None:

    source, architecture = opened(base)
    with PackWriter(tmp_path / "a.pack") as writer:
        for name, entry in source.tensors.items():
            if name == "lm_head.weight":
                data = np.zeros(-(-entry.shape[0] // 16) * (16 * 64 + 64), np.uint8)
                writer.add_tensor(name, "int8", entry.shape, [data.data], None, "rows16-1")
            else:
                writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)])
        writer.finish({"architecture": source.config})
    with pytest.raises(UserError, match="give the float checkpoint"):
        anchor_sha256(Pack.open(tmp_path / "a.pack"), architecture, 1)
