"""Sparse output matrix: the rows that are computed have the dense product's bits, others cannot be drawn;
files that do not hold and packs without one are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import quantized, tokenizer_json
from tests.run.experts import SMALLTHINKER, write_expert_pack

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.kernels import Matrix, matmul
from haversack.models import read_architecture
from haversack.models._experts import identity
from haversack.run import Engine, Limits, generate
from haversack.run._head_predictor import PREDICTOR_NAME, HeadPredictor, some_rows, sparse_logits

RNG = np.random.default_rng(4)
WIDTH, VOCABULARY = 64, 288
TEXT = RNG.integers(3, 280, 24).astype(np.int32)


def predictor(model: str = "drawn", rank: int = 32, limit: float = 0.3) -> HeadPredictor:
    down = quantized(RNG.standard_normal((rank, WIDTH)).astype(np.float32) / 8, "int4")
    up = quantized(RNG.standard_normal((VOCABULARY, rank)).astype(np.float32) / 6, "int4")
    return HeadPredictor(model, down, up, limit, 0.99)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "int8", "int4", "wide"])
@pytest.mark.parametrize("activations", ["f32", "int8-dynamic"])
def test_rows_have_the_bits_of_the_whole_product(kind: str, activations: str) -> None:
    width = 4096 if kind == "wide" else WIDTH
    values = RNG.standard_normal((VOCABULARY, width)).astype(np.float32)
    if kind in ("int8", "int4"):
        matrix = quantized(values, kind)
    else:
        matrix = Matrix.from_array(values, "f16" if kind == "wide" else kind)
    how = activations if kind in ("int8", "int4") else "f32"
    hidden = RNG.standard_normal((1, width)).astype(np.float32)
    whole = matmul(hidden, matrix, activations=how)[0]
    for rows in (np.array([0]), np.array([287]), np.sort(RNG.permutation(VOCABULARY)[:70])):
        assert np.array_equal(some_rows(hidden, matrix, rows, activations), whole[rows])


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    goal = tmp_path_factory.mktemp("head") / "head.pack"
    return with_predictor(goal, predictor())


def with_predictor(goal: Path, given: HeadPredictor | bytes) -> Path:
    plain = write_expert_pack(goal.with_suffix(".plain"), SMALLTHINKER, profile=False, matrices=True)
    source = Pack.open(plain)
    data = given if isinstance(given, bytes) else given.to_bytes()
    with PackWriter(goal) as writer:
        for name, entry in source.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)], entry.group, entry.layout)
        writer.add_file("tokenizer.json", tokenizer_json().encode())
        writer.add_file(PREDICTOR_NAME, data)
        writer.finish({"architecture": SMALLTHINKER, "provenance": {"identity": "drawn"}})
    shutil.rmtree(plain)
    return goal


def answer(source: Path, decode: str, **slots: Any) -> tuple[list[int], list[float], Engine]:
    with Engine.open(source, decode=decode, **slots) as engine:
        made = generate(engine, TEXT, Limits(max_tokens=20, end=()))
        for _ in made:
            pass
    return made.tokens, made.log_probabilities, engine


@pytest.mark.parametrize("residency", ["mapped", "copied", "streamed"])
def test_left_out_rows_are_minus_infinity_and_others_dense(residency: str, pack: Path) -> None:
    with Engine.open(pack, residency=residency, decode="sparse-head") as engine:
        cache = engine.cache(30)
        engine.step(TEXT[:20], cache=cache)
        for token in TEXT[20:]:
            before = cache.length
            logits, hidden = engine.step([token], cache=cache)
            assert logits is not None and hidden is not None and cache.length == before + 1
            found = sparse_logits(engine, engine.head_predictor, hidden)
            active = engine.head_predictor.active(hidden)
            assert 0 < len(active) < VOCABULARY
            assert np.array_equal(found[0, active], logits[0, active])
            assert np.isneginf(np.delete(found[0], active)).all()


def test_what_is_drawn_is_the_best_of_the_rows_computed(pack: Path) -> None:
    tokens, logs, engine = answer(pack, "sparse-head")
    assert len(tokens) == 20 and np.isfinite(logs).all()
    told = engine.head_predictor.record()
    assert told["rows"] == 19 * VOCABULARY and 0 < told["computed"] < told["rows"]
    assert "of its rows computed" in engine.head_predictor.words()
    assert tokens == answer(pack, "sparse-head", residency="copied")[0]


def test_with_every_row_the_answer_is_the_plain_one(tmp_path: Path) -> None:
    goal = with_predictor(tmp_path / "all.pack", predictor(limit=-1e9))
    assert answer(goal, "sparse-head")[:2] == answer(goal, "one-by-one")[:2]


def test_with_no_row_the_one_with_the_best_score_is_taken(tmp_path: Path) -> None:
    goal = with_predictor(tmp_path / "none.pack", predictor(limit=1e9))
    _, logs, engine = answer(goal, "sparse-head")
    assert engine.head_predictor.computed == 19
    assert logs[1:] == [0.0] * 19


def test_the_plan_counts_it(pack: Path) -> None:
    with Engine.open(pack, decode="sparse-head") as engine:
        lines = dict(engine.memory_plan((10, 10)).lines)
    assert lines["predictor of output rows"] >= predictor().nbytes


def test_packs_without_one_are_refused_with_advice(tmp_path: Path) -> None:
    goal = write_expert_pack(tmp_path / "bare.pack", SMALLTHINKER, profile=False)
    with pytest.raises(UserError, match=r"needs head-predictor.*--precision q4_0:predictor=64"):
        Engine.open(goal, decode="sparse-head")


def test_another_model_s_predictor_is_refused(tmp_path: Path) -> None:
    goal = with_predictor(tmp_path / "other.pack", predictor("another"))
    with pytest.raises(UserError, match="made of another model"):
        Engine.open(goal, decode="sparse-head")


def test_its_file_reads_back_and_every_damage_is_named() -> None:
    given = predictor()
    data = given.to_bytes()
    again = HeadPredictor.of_bytes(data)
    hidden = RNG.standard_normal((3, WIDTH)).astype(np.float32)
    assert np.array_equal(again.scores(hidden), given.scores(hidden)) and again.limit == given.limit
    for bad, words in (
        (b"", "no predictor of output rows"),
        (data[:-1], "bytes where"),
        (data + b"\0", "bytes where"),
        (data.replace(b'"format":[1,0]', b'"format":[9,0]'), "of format 9.0"),
        (data.replace(b'"rank":32', b'"rank":-1'), "impossible sizes"),
        (b"{" * 100_000, "no predictor of output rows"),
    ):
        with pytest.raises(DamagedFileError, match=words):
            HeadPredictor.of_bytes(bad)


def test_identity_is_that_of_the_pack(pack: Path) -> None:
    assert identity(Pack.open(pack), read_architecture(SMALLTHINKER)) == "drawn"
