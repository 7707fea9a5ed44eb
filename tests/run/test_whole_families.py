"""Every family straight from a hub folder: in every residency, under shorter names, packed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import RECORD, tokenizer_json, write_folder
from tests.run.test_residency import run_in_fresh_process

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.formats.safetensors import HubFolder, write_safetensors
from haversack.models import read_architecture
from haversack.models._checkpoint import Checkpoint, Turned, checkpoint, hub_tensors
from haversack.plan._enumerate import create_precision
from haversack.run import Engine
from haversack.run._units import aside_nbytes
from haversack.run._weights import check_tensors
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes
from haversack.shrink._precision import calibrated

NEW = [name for name in RECORD.CASES if RECORD.CASES[name][0]["model_type"] not in ("llama", "mistral")]
STORED_OTHERWISE = ["phi3", "gpt2", "opt", "opt-350m"]
TEXT = np.random.default_rng(3).integers(3, 280, 50).astype(np.int32)


def write(
    path: Path, name: str, *, bare: str = "", kind: str = "f32", shards: int = 1, **changes: Any
) -> Path:
    """A hub folder of the case `name`; `bare` is left out in front of names."""
    path.mkdir(parents=True)
    weights = {key.removeprefix(bare): values for key, values in RECORD.weights_of(name).items()}
    weights |= changes.pop("extra", {})
    for missing in changes.pop("without", ()):
        del weights[missing]
    tensors = [(n, kind, v.shape, stored(v, kind)) for n, v in weights.items()]
    if shards == 1:
        write_safetensors(path / "model.safetensors", tensors)
    else:
        files = {f"model-{index:05d}.safetensors": tensors[index::shards] for index in range(shards)}
        for file, part in files.items():
            write_safetensors(path / file, part)
        placed = {tensor[0]: file for file, part in files.items() for tensor in part}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (path / "config.json").write_text(json.dumps({**RECORD.CASES[name][0], **changes}))
    (path / "tokenizer.json").write_text(tokenizer_json())
    return path


def stored(values: np.ndarray, kind: str) -> bytes:
    """The bytes of `values` in a float type; bf16 is cut off, not rounded."""
    if kind == "bf16":
        return (np.ascontiguousarray(values).view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"f32": "<f4", "f16": "<f2"}[kind]).tobytes()


def logits_of(source: Any, **options: Any) -> np.ndarray:
    with Engine.open(source, **options) as engine:
        cache = engine.cache(60)
        rows = [engine.step(TEXT[:40], cache=cache, want="all")[0]]
        rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(40, 50)]
    return np.concatenate(rows)


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("name", NEW)
def test_residency_changes_no_bit(name: str, kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", name, kind=kind)
    plain = logits_of(folder)
    assert np.isfinite(plain).all()
    for way in ("copied", "streamed", "streamed:keep=2"):
        assert np.array_equal(logits_of(folder, residency=way), plain), way


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("gpt2", "transformer."),
        ("opt", "model."),
        ("opt-350m", "model."),
        ("phi3", "model."),
        ("phi", "model."),
    ],
)
def test_names_without_their_first_part(name: str, bare: str, tmp_path: Path) -> None:
    plain = logits_of(write(tmp_path / "whole", name))
    folder = write(tmp_path / "bare", name, bare=bare)
    assert bare + "x" not in HubFolder.open(folder).tensors
    for way in ("mapped", "copied", "streamed"):
        assert np.array_equal(logits_of(folder, residency=way), plain), way


@pytest.mark.parametrize("name", ["phi3", "gpt2"])
def test_several_files(name: str, tmp_path: Path) -> None:
    plain = logits_of(write(tmp_path / "one", name))
    folder = write(tmp_path / "many", name, shards=3)
    for way in ("mapped", "copied", "streamed"):
        assert np.array_equal(logits_of(folder, residency=way), plain), way


@pytest.mark.parametrize("name", ["phi3", "gpt2", "opt-350m"])
def test_bf16(name: str, tmp_path: Path) -> None:
    cut = {
        n: np.frombuffer(stored(v, "bf16"), "<u2").astype("<u4").__lshift__(16).view("<f4").reshape(v.shape)
        for n, v in RECORD.weights_of(name).items()
    }
    plain = logits_of(write(tmp_path / "f32", name, extra=cut))
    folder = write(tmp_path / "bf16", name, kind="bf16")
    assert np.abs(logits_of(folder) - plain).max() <= 1e-5 * np.abs(plain).max()
    assert np.array_equal(logits_of(folder, residency="streamed"), logits_of(folder))


def test_rows_of_a_fused_tensor_are_mapped_and_turned_ones_copied(tmp_path: Path) -> None:
    for name, turned in (("phi3", False), ("gpt2", True)):
        source = HubFolder.open(write(tmp_path / name, name))
        architecture = read_architecture(source.config)
        view = checkpoint(source, architecture)
        assert isinstance(view, Checkpoint) and set(view.tensors) == set(architecture.tensors())
        assert copy.copy(view).tensors == view.tensors and view.config == source.config
        for linear in (matrix for block in architecture.blocks for matrix in block.matrices()):
            entry = view.tensors[linear.weight]
            assert isinstance(entry, Turned) is turned
            if not turned:  # the very bytes of the file
                file = np.memmap(source.path / entry.file, np.uint8, "r")
                assert bytes(view.bytes(linear.weight)) == bytes(
                    file[entry.offset : entry.offset + entry.nbytes]
                )
        # Streamed weights take two blocks' copies beside their buffers, and mapped ones nothing more.
        copies = sum(view.tensors[linear.weight].nbytes for linear in architecture.blocks[0].matrices())
        assert aside_nbytes(view, architecture) == (2 * copies if turned else 0)
        with Engine.open(source.path) as engine:
            lines = dict(engine.memory_plan((10, 10)).lines)
            assert lines["weights, mapped"] == sum(e.nbytes for e in view.tensors.values())
        plain = {n: np.frombuffer(view.bytes(n), "<f4") for n in view.tensors}
        shaped = {n: values.reshape(architecture.tensors()[n]) for n, values in plain.items()}
        again = dict(hub_tensors(architecture, shaped))
        assert {n: values.tobytes() for n, values in again.items()} == {
            n: bytes(source.bytes(n)) for n in source.tensors
        }


def test_what_is_no_part_of_the_model_is_left_alone(tmp_path: Path) -> None:
    """GPT-2's first files hold their causal masks under the names of biases."""
    masks = {f"transformer.h.{i}.attn.bias": np.ones((1, 1, 96, 96), np.float32) for i in range(4)}
    plain = logits_of(write(tmp_path / "plain", "gpt2"))
    assert np.array_equal(logits_of(write(tmp_path / "masks", "gpt2", extra=masks)), plain)


@pytest.mark.parametrize(
    ("name", "bare", "missing"),
    [
        ("phi3", "", "model.layers.1.self_attn.qkv_proj.weight"),
        ("phi3", "model.", "layers.2.mlp.gate_up_proj.weight"),
        ("gpt2", "transformer.", "h.1.attn.c_attn.bias"),
        ("gpt2", "", "transformer.wpe.weight"),
        ("opt-350m", "model.", "decoder.project_in.weight"),
        ("gemma2", "", "model.layers.3.post_feedforward_layernorm.weight"),
        ("stablelm-parallel", "", "model.layers.0.self_attn.k_layernorm.norms.1.weight"),
    ],
)
def test_a_missing_tensor_is_named_as_the_checkpoint_would(
    name: str, bare: str, missing: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", name, bare=bare, without=[missing])
    with pytest.raises(DamagedFileError, match=f"the tensor {missing} is missing") as refused:
        Engine.open(folder)
    assert refused.value.field == missing


def test_a_tensor_of_another_shape_or_kind_is_named_as_the_checkpoint_does(tmp_path: Path) -> None:
    name = "h.2.attn.c_attn.weight"
    for shape in ((192, 64), (64, 64), (64,)):
        folder = write(
            tmp_path / f"shape-{shape}", "gpt2", bare="transformer.", extra={name: np.ones(shape, np.float32)}
        )
        with pytest.raises(UserError, match=r"\[64, 192\]") as refused:
            Engine.open(folder)
        assert refused.value.field == name
    bias = "model.layers.0.self_attn.qkv_proj.bias"
    folder = write(tmp_path / "bias", "phi3", extra={bias: np.ones(128, np.float32)})
    with pytest.raises(UserError, match="no such bias") as refused:
        Engine.open(folder)
    assert refused.value.field == bias


def packed(folder: Path, goal: Path, choice: str) -> Pack:
    source = HubFolder.open(folder)
    walk = LanguageWalk(read_architecture(source.config))
    view = checkpoint(source, walk.architecture)
    check_tensors(view, walk.architecture)
    method = create_precision(choice)
    texts = TEXT[:48].reshape(2, 24) if calibrated(method) else None
    with PackWriter(goal) as writer:
        compress(view, walk, method, writer, texts=texts, policy=Policy(), folder=goal.parent)
        writer.finish({"architecture": source.config, "plan": {"precision": choice}})
    kinds = stored_kinds(walk, method, Policy())
    pack = Pack.open(goal)
    assert set(pack.tensors) == set(kinds) == set(walk.architecture.tensors())
    assert sum(entry.nbytes for entry in pack.tensors.values()) == stored_nbytes(walk, kinds)
    return pack


@pytest.mark.parametrize("name", NEW)
def test_packs_hold_single_upright_matrices(name: str, tmp_path: Path) -> None:
    """Kept in f32, a pack computes the folder's bits, wherever its weights live."""
    folder = write(tmp_path / "model", name)
    pack = packed(folder, tmp_path / "a.pack", "keep:kind=f32")
    assert check_pack(pack.path) == []
    plain = logits_of(folder)
    for way in ("mapped", "streamed"):
        assert np.array_equal(logits_of(pack.path, residency=way), plain)


# One family of each kind of block; the position table and the projections in f16 beside packed matrices.
@pytest.mark.parametrize("choice", ["round-to-nearest:bits=8", "gptq:bits=8"])
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "phi", "phi3", "stablelm-parallel", "gpt2", "opt-350m"])
def test_packed_by(name: str, choice: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", name)
    pack = packed(folder, tmp_path / "a.pack", choice)
    exact = logits_of(folder)
    found = {way: logits_of(pack.path, residency=way) for way in ("mapped", "copied", "streamed")}
    error = np.linalg.norm(found["mapped"] - exact) / np.linalg.norm(exact)
    assert error < 0.15, "what is laid out wrongly is off by about 1"
    assert np.array_equal(found["copied"], found["mapped"])
    assert np.array_equal(found["streamed"], found["mapped"])
    assert np.isfinite(logits_of(pack.path, activations="int8-dynamic")).all()


def test_taps_see_single_matrices_in_order(tmp_path: Path) -> None:
    for name in STORED_OTHERWISE:
        source = HubFolder.open(write(tmp_path / name, name))
        architecture = read_architecture(source.config)
        walk, view = LanguageWalk(architecture), checkpoint(source, architecture)
        from haversack.run._weights import bind

        hidden = walk.embed(TEXT, bind(view, walk.first))
        seen: list[str] = []
        for block in architecture.blocks:
            weights = bind(view, block.tensors())
            hidden = walk.run(block.index, hidden, weights, lambda name, x: seen.append(name))  # noqa: B023
        assert seen == [linear.weight for block in architecture.blocks for linear in block.matrices()]


@pytest.mark.parametrize(("name", "last"), [("gpt2", 95), ("opt", 95)])
def test_beyond_the_learned_positions(name: str, last: int, family: Any) -> None:
    with Engine.open(family(name)) as engine:
        cache = engine.cache(120)
        text = np.resize(TEXT, last + 1)
        engine.step(text, cache=cache, want="none")
        with pytest.raises(UserError, match=f"positions 0 to {last}") as refused:
            engine.step([5], cache=cache)
        assert refused.value.nearest == last and cache.length == last + 1
        with pytest.raises(UserError):
            engine.step([5], np.array([last + 1], np.int32), cache=engine.cache(4))


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 56 MiB, most of them in matrices that have to be turned over."""
    sizes = {"vocab_size": 2048, "n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 512}
    return write_folder(tmp_path_factory.mktemp("large") / "gpt2", {**RECORD.CASES["gpt2"][0], **sizes})


@pytest.mark.parametrize("residency", ["mapped", "copied", "streamed"])
def test_copies_of_turned_matrices_are_in_the_plan(residency: str, turned: Path) -> None:
    record, peak = run_in_fresh_process(turned, "--residency", residency)
    planned = record["ram_mib"]["planned"]
    assert planned - 40 < peak <= planned


def test_kept_blocks_and_their_copies_stay_in_the_budget(turned: Path) -> None:
    budget = run_in_fresh_process(turned, "--residency", "streamed")[0]["ram_mib"]["planned"] + 28
    _, peak = run_in_fresh_process(turned, "--residency", "streamed", "--ram-mib", str(budget))
    assert peak <= budget
