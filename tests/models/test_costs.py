"""Bit operations: counted by hand on a small decoder; a quarter at 4 bits with float activations."""

from dataclasses import dataclass

import pytest

from haversack.models import read_architecture
from haversack.models._costs import (
    attention_products,
    bit_operations,
    linear_products,
    matrix_products,
    token_products,
)
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, stored_kinds
from haversack.shrink._precision import StoredKind
from haversack.shrink.precision.keep import Keep
from haversack.shrink.precision.round_to_nearest import RoundToNearest

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


def counted(method, activations, seen=10):
    architecture = read_architecture(CONFIG)
    kinds = stored_kinds(LanguageWalk(architecture), method, Policy())
    blocks, others = token_products(architecture, kinds, activations, seen)
    return bit_operations(blocks), bit_operations(others)


def test_by_hand():
    blocks, others = counted(Keep(kind="f32"), "f32")
    assert blocks == 2 * BLOCK * 256
    assert others == (64 * 100 + 2 * (2 * 10 * 64)) * 256


@pytest.mark.parametrize(
    ("bits", "activations", "share"),
    [(4, "f32", 0.25), (3, "f32", 3 / 16), (8, "int8-dynamic", 0.25), (4, "int8-dynamic", 0.125)],
)
def test_ratios_on_quantized_matrices_are_exact(bits, activations, share):
    blocks, others = counted(RoundToNearest(bits=bits), activations)
    assert blocks / counted(Keep(), "f32")[0] == share
    output = 64 * 100 * 8 * (16 if activations == "f32" else 8)
    assert others == output + 2 * (2 * 10 * 64) * 256, "the output matrix has 8 bits, attention is float"


def test_float_matrices_take_float_activations_and_windows_bound_attention():
    assert matrix_products(StoredKind("f16"), 3, 5, "int8-dynamic")[0].bit_operations == 15 * 256
    attention = read_architecture(CONFIG | {"model_type": "mistral", "sliding_window": 4}).blocks[0].attention
    assert attention_products(attention, 10).count == 2 * 4 * 64


def test_matrices_in_parts_count_what_their_parts_multiply():
    @dataclass(frozen=True)
    class Outliers:
        kind: str = "int4"

        def bit_products(self, rows, columns):
            return [(rows * (columns - 2), "int4"), (rows * 2, "f16")]

    @dataclass(frozen=True)
    class Factors:
        kind: str = "int8"

        def products(self, rows, columns):
            return 2 * (rows + columns)

    assert bit_operations(matrix_products(Outliers(), 4, 10, "int8-dynamic")) == 32 * 32 + 8 * 256
    assert bit_operations(matrix_products(Factors(), 4, 10, "f32")) == 28 * 128
    linear = read_architecture(CONFIG).blocks[0].matrices()[0]
    assert linear_products([linear], {linear.weight: Outliers()}, "f32")[1].bit_operations == 64 * 2 * 256
