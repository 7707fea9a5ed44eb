"""Matrices of several parts: the same numbers as the matrix they stand for, wherever they live, and refused
by name where they do not hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import CONFIG, draw, quantized, tokenizer_json
from tests.run.encoders import write_encoder

from haversack.cli import main
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.formats.safetensors import HubFolder
from haversack.kernels import Matrix, matmul, unpack
from haversack.kernels._native import native
from haversack.models import read_architecture, read_encoder
from haversack.run import Engine
from haversack.run._encoder import Encoder
from haversack.run._forms import bound, form, forms
from haversack.run._source import open_model
from haversack.run.export import export
from haversack.run.forms.low_rank import LowRank

RANK = 16
TEXT = np.random.default_rng(3).integers(3, 280, 40).astype(np.int32)
WAYS = ["mapped", "copied", "streamed", "streamed:keep=1", "streamed:keep=99"]


def put(writer: PackWriter, name: str, values: np.ndarray, kind: str) -> np.ndarray:
    """Add a tensor as `kind`; the numbers that it holds then."""
    if values.ndim == 1 or kind == "f32":
        writer.add_tensor(name, "f32", values.shape, [np.ascontiguousarray(values, np.float32).data])
        return values
    matrix = quantized(values, kind, 16) if kind == "int8" else quantized(values, kind)
    writer.add_tensor(name, matrix.kind, matrix.shape, [matrix.data], matrix.group, matrix.layout)
    return np.asarray(unpack(matrix))


Change = Callable[[str, dict[str, Any], dict[str, np.ndarray]], None]


def write_pair(
    folder: Path,
    kinds: tuple[str, str] = ("f32", "f32"),
    activations: str = "f32",
    rank: int = RANK,
    change: Change | None = None,
) -> tuple[Path, Path]:
    """A pack whose blocks keep factors, and the dense pack f32 that it stands for."""
    architecture = read_architecture(CONFIG)
    inside = {linear.weight for block in architecture.blocks for linear in block.matrices()}
    rng = np.random.default_rng(7)
    factored, dense = folder / "factored.pack", folder / "dense.pack"
    plan = {"precision": "keep", "activations": activations}
    with PackWriter(factored) as one, PackWriter(dense) as other:
        for name, values in draw(CONFIG).items():
            if name not in inside:
                put(one, name, values, "f32")
                put(other, name, values, "f32")
                continue
            parts = {
                "first": rng.standard_normal((rank, values.shape[1]), np.float32) / 8,
                "second": rng.standard_normal((values.shape[0], rank), np.float32) / 4,
            }
            entry = {"form": "low-rank", "shape": list(values.shape), "rank": rank}
            if change is not None:
                change(name, entry, parts)
            held = {
                part: put(one, f"{name}.{part}", given, kinds[part == "second"])
                for part, given in parts.items()
            }
            one.add_form(name, entry)
            if change is None:
                put(other, name, held["second"] @ held["first"], "f32")
            else:
                put(other, name, values, "f32")
        for writer in (one, other):
            writer.add_file("tokenizer.json", tokenizer_json().encode())
            writer.finish({"architecture": CONFIG, "plan": plan, "activations": activations})
    return factored, dense


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("forms"))


def logits_of(engine: Engine) -> np.ndarray:
    cache = engine.cache(50)
    rows = [engine.step(TEXT[:30], cache=cache, want="all")[0]]
    rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(30, 40)]
    return np.concatenate(rows)


@pytest.mark.parametrize("way", WAYS)
def test_factors_give_the_matrix_wherever_they_live(way: str, pair: tuple[Path, Path]) -> None:
    factored, dense = pair
    with Engine.open(dense) as engine:
        expected = logits_of(engine)
    with Engine.open(factored) as engine:
        plain = logits_of(engine)
    with Engine.open(factored, residency=way) as engine:
        found = logits_of(engine)
        assert engine.plan["precision"] == "keep"
    assert np.array_equal(found, plain)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kinds", [("int4", "int8"), ("int8", "f32"), ("f32", "int8")])
@pytest.mark.parametrize("activations", ["f32", "int8-dynamic"])
def test_factors_of_any_kind(kinds: tuple[str, str], activations: str, tmp_path: Path) -> None:
    factored, dense = write_pair(tmp_path, kinds, activations)
    with Engine.open(dense, activations="f32") as engine:
        expected = logits_of(engine)
    with Engine.open(factored) as engine:
        found = logits_of(engine)
        assert engine.activations == activations
        assert np.array_equal(found, logits_of(engine))
    tolerance = 1e-4 if activations == "f32" else 0.1
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.skipif(native() is None, reason="programs are native")
@pytest.mark.parametrize("activations", ["f32", "int8-dynamic"])
def test_a_program_has_the_bits_of_the_layers(activations: str, tmp_path: Path) -> None:
    factored, _ = write_pair(tmp_path, ("int8", "int8"), activations)
    with Engine.open(factored) as engine:
        ran = logits_of(engine)
        with engine.held.weights(0) as weights:
            programs = list(weights.programs.values())  # type: ignore[attr-defined]
        assert len(programs) == 1 and hasattr(programs[0], "run")
        engine.forward.programs._space = None
        assert np.array_equal(logits_of(engine), ran)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.standard_normal(shape, np.float32) for shape in ((16, 64), (96, 16)))
    x, start = rng.standard_normal((9, 64), np.float32), rng.standard_normal((9, 96), np.float32)
    bias = rng.standard_normal(96, np.float32)
    for kind in ("f32", "int8"):
        parts = [Matrix.from_array(v) if kind == "f32" else quantized(v, kind) for v in (first, second)]
        matrix = LowRank(*parts)
        for activations in ("f32", "int8-dynamic"):
            whole = start.copy()
            matrix.multiply(x, whole, activations=activations, add=True, bias=bias)
            for row in range(9):
                one = start[row : row + 1].copy()
                matrix.multiply(x[row : row + 1], one, activations=activations, add=True, bias=bias)
                assert np.array_equal(one[0], whole[row])
    assert matrix.nbytes == parts[0].nbytes + parts[1].nbytes
    exact = matmul(x, Matrix.from_array(matrix.dense()))
    assert np.abs(exact - (whole - start - bias)).max() < 0.05 * np.abs(exact).max()


def test_memory_counts_the_parts(pair: tuple[Path, Path]) -> None:
    factored, dense = pair
    with Engine.open(factored) as engine, Engine.open(dense) as other:
        held = dict(engine.memory_plan((8, 8)).lines)["weights, mapped"]
        whole = dict(other.memory_plan((8, 8)).lines)["weights, mapped"]
        assert held == sum(entry.nbytes for entry in engine.model.source.tensors.values()) < whole


def test_an_encoder_runs_on_factors(tmp_path: Path) -> None:
    folder = HubFolder.open(write_encoder(tmp_path / "bert", "bert", "ForMaskedLM"))
    architecture = read_encoder(folder.config)
    head = architecture.head
    assert head is not None and head.dense is not None
    inside = {one.weight for block in architecture.blocks for one in block.matrices()} | {head.dense.weight}
    plan = {"precision": "keep", "pooling": {"modes": ["mean"], "normalize": False}}
    rng = np.random.default_rng(2)
    with PackWriter(tmp_path / "f.pack") as one, PackWriter(tmp_path / "d.pack") as other:
        for name, shape in architecture.tensors().items():
            values = np.frombuffer(folder.bytes(name), "<f4").reshape(shape)
            if name in inside:
                first = rng.standard_normal((8, shape[1]), np.float32) / 8
                second = rng.standard_normal((shape[0], 8), np.float32) / 3
                put(one, f"{name}.first", first, "f32")
                put(one, f"{name}.second", second, "f32")
                one.add_form(name, {"form": "low-rank", "shape": list(shape), "rank": 8})
                put(other, name, second @ first, "f32")
            else:
                put(one, name, values, "f32") if values.ndim == 1 else one.add_tensor(
                    name, "f32", shape, [np.ascontiguousarray(values).data]
                )
                other.add_tensor(name, "f32", shape, [np.ascontiguousarray(values).data])
        for writer in (one, other):
            writer.add_file("tokenizer.json", tmp_path / "bert" / "tokenizer.json")
            writer.finish({"architecture": dict(folder.config), "plan": plan})
    texts = ["the old cat sees a river", "a dog"]
    with Encoder.open(tmp_path / "d.pack") as encoder:
        expected = encoder.encode(texts, want=("head",))
    for residency in ("mapped", "copied"):
        with Encoder.open(tmp_path / "f.pack", residency=residency) as encoder:
            found = encoder.encode(texts, want=("head",))
            assert "in parts" in encoder.plan["layout"]
            assert encoder.memory_plan().total_bytes > 0
        for mine, theirs in zip(found.head, expected.head, strict=True):
            assert np.abs(mine - theirs).max() < 1e-4 * np.abs(theirs).max()


# What does not hold


def damaged(change: Change) -> Change:
    """`change`, for the up projection of block 1 only."""

    def only(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
        if name == "model.layers.1.mlp.up_proj.weight":
            change(name, entry, parts)

    return only


def drop(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    del parts["second"]


def extra(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    parts["third"] = np.ones((2, 2), np.float32)


def narrow(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    parts["first"] = np.ascontiguousarray(parts["first"][:, :-1])


def flat(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    parts["first"] = parts["first"].reshape(-1)


def unknown(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    entry["form"] = "../etc/passwd"


def no_rank(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    entry["rank"] = "all"


def huge(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    entry["rank"] = 10**9


UP = "model.layers.1.mlp.up_proj.weight"
DAMAGE = {
    "missing": (drop, f"the tensor {UP}.second, which {UP} as low-rank needs, is missing"),
    "extra": (extra, f"the tensor {UP}.third is no part of {UP} as low-rank (its parts are first, second)"),
    "shape": (narrow, f"the tensor {UP}.first has the shape [16, 63] where {UP} as low-rank needs [16, 64]"),
    "flat": (flat, f"the tensor {UP}.first has the shape [1024] where"),
    "unknown": (
        unknown,
        f"the form of {UP}: the form '../etc/passwd' is unknown here (known: gated",
    ),
    "no rank": (no_rank, f"the form of {UP}: rank is all, not a whole number from 1 to 64"),
    "huge": (huge, f"the form of {UP}: rank is 1000000000, not a whole number from 1 to 64"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_form_that_does_not_hold_is_refused_by_name(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = DAMAGE[damage]
    pack, _ = write_pair(tmp_path, change=damaged(change))
    with pytest.raises(DamagedFileError) as error:
        Engine.open(pack)
    assert said in str(error.value)
    assert main(["check", str(pack), "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert not shown["whole"] and any(said in finding["what"] for finding in shown["findings"])
    assert main(["run", str(pack), "--prompt", "a"]) == 2
    assert said[:40] in "".join(capsys.readouterr()).replace("\n", " ")


def test_a_whole_pack_passes_the_check(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(pair[0])]) == 0
    assert "is whole" in capsys.readouterr().out


def test_a_shape_that_the_config_denies_is_refused(tmp_path: Path) -> None:
    def wide(name: str, entry: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
        entry["shape"] = [128, 64]
        parts["second"] = np.ones((128, RANK), np.float32)

    pack, _ = write_pair(tmp_path, change=damaged(wide))
    with pytest.raises(UserError, match=r"stands for a matrix \[128, 64\] where the config needs \[96, 64\]"):
        Engine.open(pack)


def test_an_embedding_has_no_form(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "e.pack") as writer:
        for name, values in draw(CONFIG).items():
            if name == "model.embed_tokens.weight":
                put(writer, f"{name}.first", values[:8], "f32")
                put(writer, f"{name}.second", np.ones((len(values), 8), np.float32), "f32")
                writer.add_form(name, {"form": "low-rank", "shape": list(values.shape), "rank": 8})
            else:
                put(writer, name, values, "f32")
        writer.finish({"architecture": CONFIG, "plan": {}})
    with pytest.raises(UserError, match=r"embed_tokens.weight is stored as low-rank, which only matrices"):
        Engine.open(tmp_path / "e.pack")


def test_the_writer_refuses_forms_that_cannot_be(tmp_path: Path) -> None:
    entry = {"form": "low-rank", "shape": [4, 4], "rank": 1}
    with PackWriter(tmp_path / "w.pack") as writer:
        with pytest.raises(ValueError, match="has no parts"):
            writer.add_form("a", entry)
        put(writer, "a.first", np.ones((1, 4), np.float32), "f32")
        for broken in ({**entry, "shape": [4]}, {**entry, "shape": [0, 4]}, {"shape": [4, 4]}):
            with pytest.raises(ValueError, match="form of a"):
                writer.add_form("a", broken)
        writer.add_form("a", entry)
        with pytest.raises(ValueError, match="has a form already"):
            writer.add_form("a", entry)


# The way out


def test_safetensors_merges(pair: tuple[Path, Path], tmp_path: Path) -> None:
    factored, dense = pair
    done = export(open_model(str(factored)), "safetensors", tmp_path / "out")
    assert done.nbytes > Pack.open(factored).nbytes
    with Engine.open(dense) as engine:
        expected = logits_of(engine)
    with Engine.open(tmp_path / "out") as engine:
        assert np.abs(logits_of(engine) - expected).max() < 1e-4 * np.abs(expected).max()


def test_gguf_refuses_and_says_where_to_go(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="as low-rank, and GGUF has whole matrices only; export to safetensors"
    ):
        export(open_model(str(pair[0])), "gguf", tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


def test_onnx_writes_two_products(pair: tuple[Path, Path], tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    export(open_model(str(pair[0])), "onnx", tmp_path / "out")
    graph = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False).graph
    named = {one.name: list(one.dims) for one in graph.initializer}
    assert named[f"{UP}.first"] == [RANK, 64] and named[f"{UP}.second"] == [96, RANK] and UP not in named
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    ids = TEXT[None, :30].astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(30)[None]}
    feeds |= {
        one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
        for one in session.get_inputs()
        if one.name.startswith("past")
    }
    found = session.run(["logits"], feeds)[0][0]
    with Engine.open(pair[1]) as engine:
        expected = engine.step(TEXT[:30], cache=engine.cache(30), want="all")[0]
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_every_form_is_found_by_its_file() -> None:
    assert "low-rank" in forms()
    entry = {"form": "low-rank", "shape": [6, 5], "rank": 2}
    parts = {
        f"w.{part}": Matrix.from_array(np.ones(what.shape, np.float32))
        for part, what in form("low-rank").parts(entry).items()
    }
    assert bound("w", entry, parts).rows == 6
    with pytest.raises(ValueError, match="unknown here"):
        form("dense")
