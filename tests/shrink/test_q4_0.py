"""Q4_0: the numbers of the gguf package, experts stored by matrix, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tests.run.conftest import RECORD, write_folder

from haversack.core._record import STORE_NAME
from haversack.core.errors import UserError
from haversack.core.expert_store import ExpertStore
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.formats._gguf_blocks import dequantize
from haversack.formats.safetensors import HubFolder
from haversack.kernels import Matrix, unpack
from haversack.models import read_architecture
from haversack.plan._enumerate import offered, residencies, store_records, wants_matrices
from haversack.plan._structure import Structures
from haversack.run import Engine
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, kept_matrices
from haversack.shrink.precision.q4_0 import Q40, block_codes, block_scales, round_blocks

SMALLTHINKER = {**RECORD.CASES["smallthinker"][0], "head_dim": 16}
TEXTS = np.random.default_rng(1).integers(1, 280, (2, 64)).astype(np.int32)
TEXT = np.random.default_rng(7).integers(3, 280, 40).astype(np.int32)


def of_gguf(weight: np.ndarray) -> np.ndarray:
    """`weight` through Q4_0 of the format's own package."""
    return dequantize("q4_0", gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0), weight.shape)


def ours(weight: np.ndarray) -> np.ndarray:
    codes, scales = round_blocks(weight)
    blocks = codes.reshape(len(weight), -1, 32).astype(np.float32) * scales[:, :, None]
    return blocks.reshape(weight.shape)


@settings(max_examples=60, deadline=None)
@given(
    npst.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.sampled_from([32, 64, 96])),
        elements=st.floats(-100, 100, width=32),
    )
)
def test_the_numbers_are_those_of_the_format_s_own_package(weight: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        assert np.array_equal(ours(weight), of_gguf(weight))


def test_the_first_of_equal_magnitudes_decides_the_sign() -> None:
    block = np.zeros((1, 32), np.float32)
    block[0, 3], block[0, 9] = 4.0, -4.0
    assert block_scales(block).tolist() == [[-0.5]]
    codes = block_codes(block, block_scales(block))
    assert codes[0, 3] == -8 and codes[0, 9] == 7 and codes[0, 0] == 0
    assert not block_codes(np.zeros((1, 32), np.float32), np.zeros((1, 1), np.float32)).any()


def test_a_matrix_takes_18_bytes_a_block_and_unpacks_to_its_numbers() -> None:
    weight = np.random.default_rng(2).standard_normal((48, 96)).astype(np.float32)
    found = Q40().quantize({"w": weight}, None)["w"]
    matrix = found.packed()
    assert matrix.data.nbytes == 48 * 3 * 18
    assert np.array_equal(unpack(matrix), ours(weight))


def packed(folder: Path, config: dict[str, Any], precision: str, structure: str, **given: Any) -> Path:
    source = HubFolder.open(write_folder(folder / "model", config))
    walk = LanguageWalk(read_architecture(config))
    method = Structures(walk, source).compression(precision, structure)
    goal = folder / "made.pack"
    with PackWriter(goal) as writer:
        compress(source, walk, method, writer, texts=TEXTS, policy=Policy(), folder=folder, **given)
        writer.add_file("tokenizer.json", folder / "model" / "tokenizer.json")
        writer.finish({"architecture": config})
    assert check_pack(goal) == []
    return goal


def logits_of(source: Any, **slots: Any) -> np.ndarray:
    with Engine.open(source, **slots) as engine:
        cache = engine.cache(48)
        rows = [engine.step(TEXT[:20], cache=cache, want="all")[0]]
        rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(20, 40)]
    return np.concatenate(rows)


def test_its_packs_store_experts_by_matrix_and_stream_exactly(tmp_path: Path) -> None:
    goal = packed(tmp_path, SMALLTHINKER, "q4_0", "none")
    with ExpertStore.open(goal / STORE_NAME) as store:
        assert {part for _, _, part in store.records} == {"gate", "up", "down"}
    name = "model.layers.1.block_sparse_moe.experts.2.gate.weight"
    entry, data = Pack.open(goal).tensors[name], Pack.open(goal).bytes(name)
    stored = Matrix.from_bytes(entry.kind, entry.shape, entry.group, entry.layout, data)
    given = HubFolder.open(tmp_path / "model")
    weight = np.frombuffer(given.bytes(name), "<f4").reshape(entry.shape)
    assert np.array_equal(unpack(stored), of_gguf(weight.copy()))
    assert np.array_equal(
        logits_of(goal, residency="streamed:smallthinker,buffer_kib=0"), logits_of(goal, residency="copied")
    )


@pytest.mark.parametrize("precision", ["keep:kind=f32", "round-to-nearest:bits=4,group=64"])
def test_matrices_with_neurons_left_out_stream_exactly(precision: str, tmp_path: Path) -> None:
    config = {**SMALLTHINKER, "hidden_size": 128, "moe_ffn_hidden_size": 192, "head_dim": 32}
    goal = packed(tmp_path, config, precision, "reglu", matrices=True)
    expected = logits_of(goal, residency="copied")
    for kib in (0, 300):
        way = f"streamed:smallthinker,buffer_kib={kib}"
        assert np.array_equal(logits_of(goal, residency=way), expected)


def walk_of(config: dict[str, Any]) -> LanguageWalk:
    return LanguageWalk(read_architecture(config))


def test_models_without_experts_and_odd_rows_are_refused() -> None:
    dense = walk_of(RECORD.CASES["llama"][0])
    with pytest.raises(UserError, match=r"q4_0 cannot take .*the model has no experts"):
        kept_matrices(dense, Q40(), Policy())
    assert not offered(dense, "q4_0", "none", 0, 1e9) and offered(walk_of(SMALLTHINKER), "q4_0", "none", 0, 1)
    odd = walk_of({**SMALLTHINKER, "moe_ffn_hidden_size": 40})
    with pytest.raises(UserError, match=r"down\.weight \(its rows of 40 are no multiple of 32\)"):
        kept_matrices(odd, Q40(), Policy())
    with pytest.raises(UserError, match="too large for 4 bits"):
        round_blocks(np.full((1, 32), 1e9, np.float32))


def test_its_plans_stream_matrices_and_not_experts(tmp_path: Path) -> None:
    walk = walk_of(SMALLTHINKER)
    assert store_records(walk, Q40()) == "matrices"
    ways = residencies(["int4"], None, "matrices")
    assert "streamed:smallthinker" in ways and "streamed:edgemoe" not in ways
    assert "streamed:smallthinker" not in residencies(["int4"], None, "experts")
    assert wants_matrices("streamed:smallthinker") and not wants_matrices("streamed:edgemoe")
    with pytest.raises(UserError, match="reads whole experts, and this precision stores them matrix by"):
        residencies(["int4"], "streamed:edgemoe", "matrices")
    with pytest.raises(UserError, match="reglu"):
        Structures(walk, HubFolder.open(write_folder(tmp_path / "m", SMALLTHINKER))).compression(
            "q4_0", "reglu"
        )
