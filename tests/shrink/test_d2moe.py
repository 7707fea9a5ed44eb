"""D2MoE's nested bits: the specification's numbers, nesting, bytes, error by level, packs and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.experts import OLMOE
from tests.shrink.test_edgemoe import Source

from haversack.core import index
from haversack.core.errors import UserError
from haversack.core.expert_store import STORE_NAME, ExpertStore
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.models import read_architecture
from haversack.run import Engine
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes
from haversack.shrink.precision._nested import StoredNested
from haversack.shrink.precision.d2moe import (
    COMPENSATIONS,
    base_codes,
    base_grid,
    copies_quantize,
    mwq_quantize,
    residual_level,
)
from haversack.shrink.precision.gptq import Feedback, gptq

F32 = np.float32


def correlated(rng: np.random.Generator, tokens: int, columns: int) -> np.ndarray:
    """Inputs whose channels go with their neighbours, some much larger than others."""
    places = np.arange(columns)
    factor = np.linalg.cholesky(0.9 ** np.abs(places[:, None] - places[None, :]))
    x = rng.standard_normal((tokens, columns)) @ factor.T
    return (x * np.exp(0.5 * rng.standard_normal(columns))).astype(F32)


def errors(tensor: Any, weight: np.ndarray, x: np.ndarray) -> list[float]:
    exact = x @ weight.T
    return [
        float(np.linalg.norm(x @ tensor.dequant(bits).T - exact) / np.linalg.norm(exact))
        for bits in tensor.bits
    ]


def test_a_group_that_two_bits_hold_is_exact() -> None:
    values = np.array([[0, 1, 2, 3]], F32)
    scales, zeros = base_grid(values, 2)
    assert scales.tolist() == [1.0] and zeros.tolist() == [0.0]
    assert base_codes(values, scales, zeros, 2).tolist() == [[0, 1, 2, 3]]
    assert np.array_equal(mwq_quantize(values, bits=(2,), group=4).dequant(2), values)


def test_a_residual_by_hand() -> None:
    residual = np.array([[0.4, -0.2, 0.1, -0.5]], F32)
    plus, scales = residual_level(residual)
    assert plus.tolist() == [[True, False, True, False]]
    assert scales[0] == pytest.approx(0.3, abs=2e-4)
    after = residual - np.where(plus, scales[:, None], -scales[:, None])
    assert after.tolist()[0] == pytest.approx([0.1, 0.1, -0.2, -0.2], abs=5e-4)


def test_a_bit_more_halves_the_error_of_normal_weights() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((128, 512)).astype(F32)
    x = np.eye(512, dtype=F32)
    two, three, four = errors(mwq_quantize(weight), weight, x)
    assert two < 0.503 and 0.4 < three / two < 0.6 and 0.4 < four / three < 0.6


def test_widths_are_nested_and_planes_hold_what_was_computed() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((40, 300)).astype(F32)
    tensor = mwq_quantize(weight, correlated(rng, 600, 300), bits=(2, 3, 4, 5), group=64, pad=True)
    total = np.zeros_like(weight)
    for level, bits in enumerate(tensor.bits):
        total = total + tensor.planes[level].dense()
        assert np.array_equal(tensor.dequant(bits), total)
        part = mwq_quantize(weight, bits=tensor.bits[: level + 1], group=64, compensate="none", pad=True)
        whole = mwq_quantize(weight, bits=tensor.bits, group=64, compensate="none", pad=True)
        for one, other in zip(part.planes, whole.planes, strict=False):
            assert np.array_equal(one.data, other.data)
    x = rng.standard_normal((5, 300)).astype(F32)
    for bits in tensor.bits:
        assert np.allclose(tensor.matmul(x, bits), x @ tensor.dequant(bits).T, atol=1e-4)


def test_bytes_of_nested_bits_and_of_copies() -> None:
    weight = np.random.default_rng(2).standard_normal((64, 512)).astype(F32)
    nested, copies = mwq_quantize(weight), copies_quantize(weight)
    assert nested.nbytes * 8 == 4.5 * weight.size
    assert copies.nbytes * 8 == 9.75 * weight.size
    assert nested.nbytes <= 0.47 * copies.nbytes
    for tensor in (nested, copies):
        stored = StoredNested(2, 4, 128, tensor.copies)
        assert stored.nbytes(*weight.shape) == tensor.nbytes


def test_which_level_is_compensated_decides_where_the_error_is_small() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((64, 256)).astype(F32)
    x = correlated(rng, 2000, 256)
    found = {name: errors(mwq_quantize(weight, x, compensate=name), weight, x) for name in COMPENSATIONS}
    for name in ("none", "top"):
        assert found[name] == sorted(found[name], reverse=True) and len(set(found[name])) == 3
    assert found["bottom"][2] > found["none"][2]  # wider levels of the published order are worse than none
    for level, name in enumerate(("bottom", "middle", "top")):
        assert min(found, key=lambda one: found[one][level]) == name
    moments = x.T.astype(np.float64) @ x / len(x)
    codes, scales = gptq(weight, Feedback.of(moments.copy(), 0.01, "given"), 4, 128, "searched")
    plain = np.repeat(scales, 128, axis=1) * codes
    exact = x @ weight.T
    alone = float(np.linalg.norm(x @ plain.T - exact) / np.linalg.norm(exact))
    assert found["top"][2] <= 1.5 * alone
    assert errors(mwq_quantize(weight, hessian=moments), weight, x) == pytest.approx(found["top"], rel=0.02)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bits": (2, 4)}, r"bits=\(2, 4\) cannot be nested.*use \(2, 3, 4\)"),
        ({"bits": (3, 2)}, "cannot be nested"),
        ({"bits": ()}, "cannot be nested"),
        ({"bits": (7, 8, 9)}, "cannot be nested"),
        ({"group": 96}, "group=96 does not divide the 256 inputs.*pad=True"),
        ({"compensate": "all"}, "compensate=all is not supported"),
    ],
)
def test_what_cannot_be_nested_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        mwq_quantize(np.ones((4, 256), F32), **given)


def test_weights_that_are_no_numbers_are_refused() -> None:
    weight = np.ones((4, 128), F32)
    weight[2, 7] = np.nan
    with pytest.raises(UserError, match="not finite"):
        mwq_quantize(weight)


def test_zeros_and_constants_come_back() -> None:
    weight = np.concatenate([np.zeros((2, 128)), np.full((2, 128), -0.75)]).astype(F32)
    found = mwq_quantize(weight)
    assert np.array_equal(found.dequant(4)[:2], weight[:2])
    assert np.allclose(found.dequant(4), weight, atol=1e-3)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("d2moe:base=6", "base=6 is not supported"),
        ("d2moe:group=100", "group=100 is not supported"),
        ("d2moe:target_bits=5", "target_bits=5.0 is not between the 2 and 4 bits"),
        ("d2moe:capacity=.3/.4/.4", "capacity.*sum to 1.1"),
        ("d2moe:capacity=.5/.5", "2 shares for 3 levels"),
        ("d2moe:capacity=a", "capacity"),
        ("d2moe:steps=0", "steps=0"),
    ],
)
def test_bad_parameters_are_refused(choice: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        index.create("shrink", "precision", choice)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Source(tmp_path_factory.mktemp("source"))


def packed(source: Any, goal: Path, choice: str) -> Pack:
    walk, method = LanguageWalk(read_architecture(OLMOE)), index.create("shrink", "precision", choice)
    texts = np.random.default_rng(7).integers(3, 280, (4, 64)).astype(np.int32)
    with PackWriter(goal) as writer:
        compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=goal.parent)  # type: ignore[arg-type]
        writer.finish({"architecture": OLMOE, "plan": {"precision": choice}})
    pack = Pack.open(goal)
    said = stored_nbytes(walk, stored_kinds(walk, method, Policy()))  # type: ignore[arg-type]
    assert sum(entry.nbytes for entry in pack.tensors.values()) == said
    return pack


@pytest.mark.parametrize("choice", ["d2moe:group=32", "d2moe:base=5,planes=3", "d2moe:layout=copies"])
def test_every_plane_is_one_aligned_record(source: Any, choice: str, tmp_path: Path) -> None:
    pack = packed(source, tmp_path / "a.pack", choice)
    assert check_pack(pack.path) == []
    method: Any = index.create("shrink", "precision", choice)
    parts = ["", *(f"plane{bits}" for bits in method.widths[1:])]
    with ExpertStore.open(pack.path / STORE_NAME) as store:
        assert {key[2] for key in store.records} == set(parts)
        assert len(store.records) == 3 * 6 * len(parts)
        for record in store.records.values():
            assert record.offset % 4096 == 0 and len(record.tensors) == 3
    with Engine.open(pack.path) as engine:
        plain, _ = engine.step(np.arange(9, 29), cache=engine.cache(20), want="all")
    with Engine.open(pack.path, residency="streamed:d2moe,buffer_kib=60") as engine:
        streamed, _ = engine.step(np.arange(9, 29), cache=engine.cache(20), want="all")
    assert np.array_equal(plain, streamed)


def test_a_model_without_experts_is_refused() -> None:
    method: Any = index.create("shrink", "precision", "d2moe")
    with pytest.raises(UserError, match="nests the bits of experts"):
        method.quantize({}, None)
