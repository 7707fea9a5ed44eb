"""Counted costs: known products by hand, and the specification's ratio to the unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from haversack.models import read_architecture
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, stored_kinds
from haversack.shrink._precision import Precision, StoredKind
from haversack.shrink.bit_operations import (
    Cost,
    Product,
    attention_products,
    matrix_product,
    ratio_to_float,
    token_products,
)
from haversack.shrink.precision.keep import Keep
from haversack.shrink.precision.quik import StoredSplit
from haversack.shrink.precision.round_to_nearest import RoundToNearest
from haversack.shrink.precision.spqr import StoredWithOutliers

CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BLOCK = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96  # query, output; key, value; gate, up, down


def counted(method: Precision, activations: str, seen: int = 10) -> tuple[Cost, Cost]:
    architecture = read_architecture(CONFIG)
    kinds = stored_kinds(LanguageWalk(architecture), method, Policy())
    blocks, others = token_products(architecture, kinds, activations, seen)
    return Cost.of(blocks), Cost.of(others)


def test_a_product_by_hand() -> None:
    one = Product(
        "up", rows=10, columns=4, outputs=3, weight_bits=4, activation_bits=8, weight_nbytes=20, reads=2
    )
    assert one.multiplications == 120
    assert one.bit_operations == 120 * 32
    assert one.traffic_nbytes == 2 * 20 + 10 * 4 + 10 * 3 * 2


def test_four_bits_are_a_quarter_exactly() -> None:
    products = [Product("a", 7, 64, 96, weight_bits=4, weight_nbytes=9), Product("b", 3, 96, 64, 4, 16, 9)]
    assert ratio_to_float(products) == 0.25
    assert ratio_to_float([Product("c", 5, 8, 8, 8, 8, 9)]) == 0.25
    assert ratio_to_float([Product("c", 5, 8, 8, 3, 16, 9)]) == 3 / 16


def test_floats_are_float_in_both() -> None:
    scores, mixtures = attention_products("encoder", queries=50, keys=50, heads=2, head_width=32)
    assert scores.multiplications == mixtures.multiplications == 2 * 50 * 50 * 32
    assert ratio_to_float([scores, mixtures]) == 1.0
    assert ratio_to_float([scores], "traffic_nbytes") == 1.0


def test_a_causal_layer_sees_a_triangle() -> None:
    scores, _ = attention_products("decoder", queries=5, keys=5, heads=1, head_width=8, causal=True)
    assert scores.multiplications == (1 + 2 + 3 + 4 + 5) * 8


def test_traffic_counts_weights_for_every_read() -> None:
    decoder = Product("down", rows=6, columns=64, outputs=64, weight_nbytes=2 * 64 * 64, reads=6)
    encoder = Product("down", rows=6, columns=64, outputs=64, weight_nbytes=2 * 64 * 64)
    assert decoder.traffic_nbytes - encoder.traffic_nbytes == 5 * 2 * 64 * 64
    assert Cost.of([decoder, encoder]).traffic_nbytes == decoder.traffic_nbytes + encoder.traffic_nbytes
    assert decoder.floating() == decoder


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_bits_scale_operations_linearly(bits: int) -> None:
    assert Product("a", 2, 8, 8, weight_bits=bits).bit_operations == 2 * 64 * bits * 16


def test_a_decoder_by_hand() -> None:
    blocks, others = counted(Keep(kind="f32"), "f32")
    assert blocks.bit_operations == 2 * BLOCK * 256
    assert others.bit_operations == (64 * 100 + 2 * (2 * 10 * 64)) * 256
    moved = 2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 96) + (96 + 64)  # numbers in and out
    assert blocks.traffic_nbytes == 2 * (4 * BLOCK + 2 * moved)


@pytest.mark.parametrize(
    ("bits", "activations", "share"),
    [(4, "f32", 0.25), (3, "f32", 3 / 16), (8, "int8-dynamic", 0.25), (4, "int8-dynamic", 0.125)],
)
def test_ratios_on_quantized_matrices_are_exact(bits: int, activations: str, share: float) -> None:
    blocks, others = counted(RoundToNearest(bits=bits), activations)
    assert blocks.bit_operations / counted(Keep(), "f32")[0].bit_operations == share
    output = 64 * 100 * 8 * (16 if activations == "f32" else 8)
    assert others.bit_operations == output + 2 * (2 * 10 * 64) * 256, "8 bits; attention is float"


def test_float_matrices_take_float_activations_and_windows_bound_attention() -> None:
    architecture = read_architecture(CONFIG | {"model_type": "mistral", "sliding_window": 4})
    linear = architecture.blocks[0].matrices()[0]
    one = matrix_product(linear, StoredKind("f16"), "int8-dynamic")
    assert one.bit_operations == 64 * 64 * 256
    kinds = stored_kinds(LanguageWalk(architecture), Keep(), Policy())
    others = token_products(architecture, kinds, "f32", 10)[1]
    scores = [one for one in others if one.name.endswith(".scores")]
    assert [one.multiplications for one in scores] == [4 * 64, 4 * 64]


def test_matrices_in_parts_count_what_their_parts_multiply() -> None:
    @dataclass(frozen=True)
    class Outliers:
        kind: str = "int4"

        def bit_products(self, rows: int, columns: int) -> list[tuple[int, str]]:
            return [(rows * (columns - 2), "int4"), (rows * 2, "f16")]

        def nbytes(self, rows: int, columns: int) -> int:
            return rows * columns

    @dataclass(frozen=True)
    class Factors:
        kind: str = "int8"

        def products(self, rows: int, columns: int) -> int:
            return 2 * (rows + columns)

        def nbytes(self, rows: int, columns: int) -> int:
            return 2 * (rows + columns)

    linear: Any = read_architecture(CONFIG).blocks[0].matrices()[0]
    one = matrix_product(linear, Outliers(), "int8-dynamic")
    assert one.bit_operations == 64 * 62 * 32 + 64 * 2 * 256
    assert one.weight_nbytes == 64 * 64
    factors = matrix_product(linear, Factors(), "f32")
    assert factors.bit_operations == 256 * 8 * 16 and factors.weight_nbytes == 256


def test_a_matrix_in_parts_is_one_matrix() -> None:
    """Its input is read once and its result written once, and its float is one matrix of 16 bits."""
    linear: Any = read_architecture(CONFIG).blocks[0].matrices()[0]  # 64 x 64
    stored = StoredWithOutliers(StoredKind("int3", 32), 0.01)
    spqr, outliers = matrix_product(linear, stored, "f32", rows=5), 41
    assert spqr.bit_operations == 5 * (64 * 64 * 3 * 16 + outliers * 16 * 16)
    assert spqr.traffic_nbytes == stored.nbytes(64, 64) + 5 * (64 * 2 + 64 * 2)
    assert spqr.floating().traffic_nbytes == 2 * 64 * 64 + 5 * (64 * 2 + 64 * 2)
    assert spqr.floating().bit_operations == 5 * 64 * 64 * 256
    kept = StoredSplit(StoredKind("int4", 32), 8)
    quik = matrix_product(linear, kept, "int8-dynamic", rows=5)
    assert quik.bit_operations == 5 * 64 * (56 * 4 * 8 + 8 * 16 * 16)
    assert quik.traffic_nbytes == kept.nbytes(64, 64) + 5 * (56 * 1 + 8 * 2 + 64 * 2)
    assert quik.floating() == spqr.floating()
    assert ratio_to_float([quik]) == (56 * 32 + 8 * 256) / (64 * 256)
