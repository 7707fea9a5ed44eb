"""Counted costs: known products by hand, and the specification's ratio to the unit."""

from __future__ import annotations

import pytest

from haversack.shrink.bit_operations import Cost, Product, attention_products, ratio_to_float


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
