"""Formulas of costs, against counts by hand and against PyTorch's own count of operations."""

from __future__ import annotations

import math

import pytest

from haversack.core.errors import UserError
from haversack.shrink.structure.transformer_costs import (
    BERT_BASE_PRE_TRAINING,
    Encoder,
    crossing,
    training_cost,
)

DENSE = Encoder(768, 3072, 12, 12)


def test_operations_of_bert_base_by_hand() -> None:
    assert DENSE.linear_operations(128) == 12 * 2 * 128 * (4 * 768**2 + 2 * 768 * 3072)
    assert DENSE.attention_operations(128) == 12 * 4 * 128**2 * 768
    thin = Encoder(768, 3072, 12, 12, rank=256)
    assert thin.linear_share() == (4 * 393_216 + 2 * 983_040) / (4 * 768**2 + 2 * 768 * 3072)
    mixed = Encoder(768, 3072, 12, 12, projected=128)
    assert mixed.attention_operations(512) == 12 * (4 * 512 * 128 * 768 + 2 * 2 * 512 * 128 * 768)


def test_operations_are_those_that_pytorch_counts() -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    from haversack.shrink.structure import factorize, linformerize

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(**shape, vocab_size=50, attn_implementation="eager")
    model = BertModel(config, add_pooling_layer=False).eval()
    thin, _ = factorize(model, 0.5)
    for made, rank, k in (
        (model, None, None),
        (thin, 0.5, None),
        (linformerize(thin, 40, 16), 0.5, 16),
    ):
        # The fused kernel of the processor is one that the counter does not know.
        with FlopCounterMode(display=False) as counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            made(torch.zeros(1, 40, dtype=torch.long))
        expected = Encoder(64, 128, 2, 4, rank, k).operations(40)
        assert counted.get_total_flops() == pytest.approx(expected, rel=1e-6)


def test_low_rank_wins_short_texts_and_linformer_long_ones() -> None:
    thin, mixed = Encoder(768, 3072, 12, 12, rank=256), Encoder(768, 3072, 12, 12, projected=128)
    point = crossing(thin, mixed)
    assert point is not None
    assert mixed.operations(point) < thin.operations(point)
    assert mixed.operations(point - 1) >= thin.operations(point - 1)
    assert crossing(Encoder(768, 3072, 12, 12, rank=0.2, projected=64), mixed) is None


def test_the_published_cost_of_bert_comes_out() -> None:
    cost = training_cost(**BERT_BASE_PRE_TRAINING)
    assert cost.energy_kwh == pytest.approx(1507, rel=0.01)
    assert cost.emissions_kg == pytest.approx(1438 * 0.4536, rel=0.01)
    assert cost.cost_usd == pytest.approx(3751)
    less = training_cost(**BERT_BASE_PRE_TRAINING, step_time_ratio=0.7)
    assert less.energy_kwh == pytest.approx(0.7 * cost.energy_kwh)
    assert less.cost_usd == pytest.approx(0.7 * cost.cost_usd)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="step_time_ratio"):
            training_cost(10, 100, step_time_ratio=wrong)
