"""The planner of low rank: it knows what it counts, measures what it recommends, and keeps to the error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from haversack.core.errors import UserError
from haversack.shrink.structure import plan
from haversack.shrink.structure.transformer_costs import Encoder


@pytest.fixture(scope="module")
def encoder() -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    config = BertConfig(**shape, vocab_size=200, max_position_embeddings=512)
    return BertModel(config, add_pooling_layer=False).eval()


def test_size_is_won_by_the_lowest_rank_and_operations_are_the_formulas(encoder: Any) -> None:
    found = plan(encoder, 256, goal="size", ranks=(0.2, 0.6), mixtures=(64,), rounds=3)
    assert [one.name for one in found.choices] == [
        "dense", "low rank 0.2", "low rank 0.6", "Linformer 64",
        "low rank 0.2 and Linformer 64", "low rank 0.6 and Linformer 64",
    ]  # fmt: skip
    assert found.chosen.name == "low rank 0.2"
    for one in found.choices:
        expected = Encoder(128, 512, 2, 4, one.rank, one.projected).operations(256)
        assert one.operations == pytest.approx(expected)
        assert one.seconds > 0 and one.memory_mib >= one.size_mib
    dense, linformer = found.choices[0], found.choices[3]
    assert linformer.size_mib > dense.size_mib, "only low-rank weights make the model smaller"
    assert "fine-tune" in str(found)


def test_the_chosen_one_is_the_best_measured(encoder: Any) -> None:
    for goal, value in (("latency", "time_ratio"), ("memory", "memory_mib")):
        found = plan(encoder, 32, 2, goal, ranks=(0.4,), mixtures=(128,), rounds=3)
        assert getattr(found.chosen, value) == min(getattr(one, value) for one in found.choices)
        assert all(one.projected is None for one in found.choices), "32 tokens are too few for 128 mixtures"


def test_an_error_budget_is_kept_by_every_candidate(encoder: Any) -> None:
    found = plan(encoder, 64, goal="size", max_error=0.7, rounds=1)
    assert len(found.choices) > 1
    assert all(one.error is not None and one.error <= 0.7 for one in found.choices[1:])
    assert all(one.projected is None for one in found.choices)
    strict = plan(encoder, 64, goal="size", max_error=1e-4, rounds=1)
    assert strict.chosen.name == "dense" and len(strict.choices) == 1


def test_bad_questions_are_refused(encoder: Any) -> None:
    with pytest.raises(UserError, match="goal"):
        plan(encoder, 64, goal="speed")
    with pytest.raises(UserError) as caught:
        plan(encoder, 513)
    assert caught.value.nearest == 512
    with pytest.raises(UserError, match="example"):
        plan(torch.nn.Linear(3, 3), 8)
