"""SmallThinker in PyTorch: the engine's logits, the gradients of a plain loop over experts, its balance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.models.parity import BAR

from haversack.models.language.smallthinker import read
from haversack.run import Engine

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

from haversack.models.language.smallthinker_torch import (  # noqa: E402
    Mixture,
    SmallThinker,
    SmallThinkerShape,
    load_balance,
    products,
    products_in_turn,
    routed,
)

SHAPE = SmallThinkerShape(
    vocabulary=97,
    width=32,
    layers=5,
    heads=4,
    key_value_heads=2,
    head_width=12,
    experts=6,
    top=2,
    feed_forward=24,
    window=7,
    context=64,
)
TOKENS = 40


def drawn(shape: SmallThinkerShape, seed: int = 3) -> SmallThinker:
    """A model whose every weight matters, the norms' too."""
    model = SmallThinker(shape)
    model.initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise * 1.5 * parameter.shape[1] ** -0.5)
    return model


def logits_of(model: SmallThinker, tokens: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(tokens)[None])[0].numpy()


@pytest.mark.parametrize("shape", [SHAPE, SHAPE.dense()], ids=["mixture", "dense"])
def test_engine_gives_the_same_logits(shape: SmallThinkerShape, memory_source: Any) -> None:
    """Over windows several times, with and without positions; one token at a time and all at once."""
    model = drawn(shape)
    tokens = np.random.default_rng(5).integers(0, shape.vocabulary, TOKENS)
    expected = logits_of(model, tokens)
    weights = {name: values.numpy() for name, values in model.state_dict().items()}
    with Engine.open(memory_source(shape.hub_config(0), weights)) as engine:
        cache = engine.cache(TOKENS)
        found = [engine.step(tokens[:23], cache=cache, want="all")[0]]
        found += [engine.step(tokens[at : at + 1], cache=cache)[0] for at in range(23, TOKENS)]
    joined = np.concatenate([rows for rows in found if rows is not None])
    assert np.abs(joined - expected).max() <= BAR * np.abs(expected).max()


def test_window_positions_and_router_matter(memory_source: Any) -> None:
    """What parity would miss if the comparison had no teeth."""
    model = drawn(SHAPE)
    tokens = np.random.default_rng(5).integers(0, SHAPE.vocabulary, TOKENS)
    expected = logits_of(model, tokens)
    weights = {name: values.numpy() for name, values in model.state_dict().items()}
    config = SHAPE.hub_config(0)
    for other in (
        {"sliding_window_size": 8},
        {"rope_layout": [1] * SHAPE.layers},
        {"sliding_window_layout": [0] * SHAPE.layers},
        {"moe_num_active_primary_experts": 3},
        {"moe_primary_router_apply_softmax": True},
    ):
        with Engine.open(memory_source({**config, **other}, weights)) as engine:
            found = engine.step(tokens, cache=engine.cache(TOKENS), want="all")[0]
        assert found is not None
        assert np.abs(found - expected).max() > BAR * np.abs(expected).max(), other


def test_config_and_shape_are_inverse_and_the_family_reads_them() -> None:
    config = SHAPE.hub_config(4)
    assert SmallThinkerShape.from_hub_config(config) == SHAPE
    stored = {name: tuple(values.shape) for name, values in SmallThinker(SHAPE).state_dict().items()}
    assert read(config).checkpoint_tensors() == stored


def test_sizes_of_the_dense_twin() -> None:
    """It has the parameters that a token of the mixture meets, but for the router's other rows."""
    mixture, dense = SmallThinker(SHAPE), SmallThinker(SHAPE.dense())
    total = sum(value.numel() for value in dense.parameters())
    assert dense.active_parameters() == total
    assert mixture.active_parameters() - total == SHAPE.layers * (SHAPE.experts - 1) * SHAPE.width


def plain_mixture(mixture: Mixture, x: Any, residual: Any) -> Any:
    """Every expert computes every row; those not chosen have share zero."""
    scores = (residual @ mixture.primary_router.weight.T).sigmoid()
    kept = scores * (scores >= scores.topk(mixture.top, dim=-1).values[..., -1:])
    shares = kept / kept.sum(-1, keepdim=True)
    results = [
        expert.down((expert.gate(x).relu()) * expert.up(x)) * shares[..., number : number + 1]
        for number, expert in enumerate(mixture.experts)
    ]
    return torch.stack(results).sum(0)


def test_sorted_experts_equal_a_loop_forward_and_backward() -> None:
    mixture: Mixture = drawn(SHAPE).model.layers[0].block_sparse_moe
    generator = torch.Generator().manual_seed(9)
    x, residual, weight = (torch.randn(3, 11, SHAPE.width, generator=generator) for _ in range(3))
    x.requires_grad_(), residual.requires_grad_()
    inputs = [x, residual, *mixture.parameters()]
    ours, _ = mixture(x, residual)
    plain = plain_mixture(mixture, x, residual)
    assert torch.allclose(ours, plain, atol=1e-5)
    gradients = torch.autograd.grad((ours * weight).sum(), inputs)
    for found, expected in zip(gradients, torch.autograd.grad((plain * weight).sum(), inputs), strict=True):
        assert (found - expected).norm() <= 1e-5 * (1 + expected.norm())


def test_an_expert_nobody_takes_costs_nothing_and_learns_nothing() -> None:
    mixture: Mixture = drawn(SHAPE).model.layers[0].block_sparse_moe
    with torch.no_grad():
        mixture.primary_router.weight[2] = -100.0
    x = torch.rand(1, 5, SHAPE.width)
    mixed, _ = mixture(x, x)
    mixed.sum().backward()
    assert float(mixture.experts[2].up.weight.grad.abs().max()) == 0.0
    assert all(float(mixture.experts[e].up.weight.grad.abs().max()) > 0 for e in routed_to(mixture, x))


def test_products_one_by_one_equal_the_grouped_call() -> None:
    """What an older PyTorch does; the second expert has no rows."""
    generator = torch.Generator().manual_seed(4)
    rows, matrices = torch.randn(9, 16, generator=generator), torch.randn(4, 16, 8, generator=generator)
    ends = torch.tensor([2, 2, 6, 9], dtype=torch.int32)
    found = products_in_turn(rows, matrices, ends)
    assert torch.allclose(found[2:6], rows[2:6] @ matrices[2], atol=1e-5)
    assert torch.allclose(found, products(rows, matrices, ends), atol=1e-5)


def routed_to(mixture: Mixture, x: Any) -> list[int]:
    chosen, _, _ = routed(x @ mixture.primary_router.weight.T, mixture.top)
    return sorted(set(chosen.flatten().tolist()))


def test_shares_are_of_the_chosen_alone() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 2.5]])
    chosen, shares, _ = routed(logits, 2)
    assert chosen.tolist() == [[3, 0]]
    one, two = 1 / (1 + np.exp(-2.5)), 1 / (1 + np.exp(-2.0))
    assert np.allclose(shares, [[one / (one + two), two / (one + two)]])


def test_load_balance_is_one_when_even_and_grows_with_the_load() -> None:
    even = load_balance(torch.full((8, 4), 0.3), torch.full((4,), 4))
    assert float(even) == pytest.approx(1.0)
    scores = torch.tensor([[0.9, 0.1, 0.1, 0.1]]).repeat(8, 1)
    assert float(load_balance(scores, torch.tensor([8, 8, 0, 0]))) == pytest.approx(4 * (0.375 + 0.1 / 2.4))
