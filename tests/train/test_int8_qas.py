"""Quantization-aware scaling: the same update whatever the scale, dead channels left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.models.graph.nets import other_net, residual_net

from haversack.core.errors import UserError
from haversack.models.graph._ir import Graph, Quantization
from haversack.models.graph.training import in_floats, with_head
from haversack.train._network import Batch, Slice
from haversack.train._slots import Learned, Settings
from haversack.train.gradient.backprop import Backprop
from haversack.train.networks._graph import GraphNetwork
from haversack.train.precision.int8_qas import (
    DEAD,
    Int8Qas,
    along,
    bias_factors,
    factors_of,
    weight_factors,
)


def rescaled(graph: Graph, weight: str, by: float) -> Graph:
    """The same function: numbers of `weight` times `by`, its scales divided by it; the bias alike."""
    op = next(each for each in graph.linears() if each.weight == weight)
    tensors, constants = dict(graph.tensors), dict(graph.constants)
    for name in (weight, op.bias):
        assert name is not None
        codes = tensors[name].quantization
        assert codes is not None
        scales = tuple(each / by for each in codes.scales)
        tensors[name] = replace(tensors[name], quantization=Quantization(scales, codes.zero, codes.axis))
        constants[name] = constants[name].astype(np.float64) * by
    return replace(graph, tensors=tensors, constants=constants)


@pytest.mark.parametrize("layer", [0, 2, 3, 6])
@pytest.mark.parametrize("by", [0.25, 3.0])
def test_the_update_of_the_real_weight_does_not_know_the_scale(layer: int, by: float) -> None:
    """In the function without rounding: scale times change is the same, with scaling and only with it."""
    from haversack.models.graph import Machine, backward, with_loss
    from haversack.models.graph.autodiff import gradients_of

    graph = residual_net(1)
    if layer == 6:
        graph = other_net(1)
    weight = graph.linears()[layer if layer < 6 else 2].weight
    random = np.random.default_rng(0)
    inputs = random.integers(-60, 60, (2, 8, 8, 3)).astype(np.float64)
    moved = []
    for factor in (1.0, by):
        whole = with_head(rescaled(graph, weight, factor), 4, 0)
        op = next(each for each in whole.linears() if each.weight == weight)
        asked, names = gradients_of(backward(with_loss(whole)), dict.fromkeys((weight, op.bias)))
        parameters = {name: values.astype(np.float64) for name, values in whole.constants.items()}
        feeds = {"x": inputs, "label": np.array([0, 3])}
        found = Machine(asked, "none", parameters).run(feeds)
        changes = []
        for name in (weight, op.bias):
            factors, axis = factors_of(whole)[name]
            gradient = found[names[name]]
            codes = whole.tensors[name].quantization
            assert codes is not None
            scales = np.broadcast_to(codes.array(), gradient.shape[axis])
            real = along(scales, axis, gradient, None)
            changes.append((gradient * along(factors, axis, gradient, None) * real, gradient * real))
        moved.append(changes)
    for (scaled, plain), (scaled_again, plain_again) in zip(*moved, strict=True):
        assert np.allclose(scaled, scaled_again, rtol=1e-6, atol=1e-9 * np.abs(scaled).max())
        assert not np.allclose(plain, plain_again, rtol=0.5, atol=0)


def test_the_scaled_step_is_that_of_the_weights_in_floats() -> None:
    """One step of every layer, as floats: integers with scaling move by what the float network moves by."""
    graph = with_head(residual_net(2), 4, 0)
    from haversack.models.graph import Machine, backward, with_loss
    from haversack.models.graph.autodiff import gradients_of

    real = in_floats(graph)
    random = np.random.default_rng(0)
    codes_in = random.integers(-12, 6, (2, 8, 8, 3)).astype(np.float64)
    floats = (codes_in + 3) * 0.02
    labels = np.array([1, 2])
    top = graph.convolutions()[-1].weight
    both = []
    for net, inputs, kind in ((graph, codes_in, "none"), (real, floats, "float")):
        asked, names = gradients_of(backward(with_loss(net)), {top: None})
        values = {name: each.astype(np.float64) for name, each in net.constants.items()}
        both.append(Machine(asked, kind, values).run({"x": inputs, "label": labels})[names[top]])
    factors, axis = factors_of(graph)[top]
    codes = graph.tensors[top].quantization
    assert codes is not None
    moved = both[0] * along(factors, axis, both[0], None) * along(codes.array(), axis, both[0], None)
    correlation = np.corrcoef(moved.ravel(), both[1].ravel())[0, 1]
    assert correlation > 0.95
    assert np.linalg.norm(moved) / np.linalg.norm(both[1]) == pytest.approx(1, abs=0.15)


def test_factors_are_squares_of_scales_and_none_for_dead_channels() -> None:
    scales = np.array([0.01, 4e-9, DEAD, 2.0])
    assert weight_factors(scales).tolist() == [1e4, 0.0, 1 / DEAD**2, 0.25]
    assert bias_factors(scales, 0.5).tolist() == pytest.approx([4e4, 0.0, 4 / DEAD**2, 1.0])


def test_factors_go_along_the_outputs_of_a_part() -> None:
    gradient = np.ones((3, 3, 2))
    found = along(np.array([1.0, 2.0, 3.0]), 2, gradient, Slice(2, (0, 2)))
    assert (gradient * found)[0, 0].tolist() == [1.0, 3.0]
    wide = along(np.array([1.0, 2.0]), 0, np.ones((2, 1, 1, 5)), Slice(3, (0, 1, 2, 3, 4)))
    assert wide.shape == (2, 1, 1, 1)


def trained(method: Int8Qas, rate: float, steps: int = 3) -> tuple[GraphNetwork, GraphNetwork]:
    net, before = (GraphNetwork(residual_net(3), "made") for _ in range(2))
    for each in (net, before):
        each.new_head(("a", "b", "c"), 0)
    learned = Learned(dict.fromkeys(net.tensors()))
    numbers = method.begin(net, learned)
    stepper = Backprop().begin(net, learned, Settings(steps, 4, 0, numbers))
    random = np.random.default_rng(0)
    batch = Batch(random.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8), np.array([0, 1, 2, 0]))
    for _ in range(steps):
        assert np.isfinite(stepper.step(batch, rate))
    numbers.finish()
    return net, before


def changed(net: GraphNetwork, before: GraphNetwork) -> int:
    return sum(
        int((values != before.tensors()[name]).sum())
        for name, values in net.tensors().items()
        if not name.startswith("head")
    )


@pytest.mark.parametrize("latent", ["int8", "float"])
def test_integers_move_with_scaling_and_stay_without(latent: str) -> None:
    with_it = trained(Int8Qas(latent=latent), 0.05)
    without = trained(Int8Qas(latent=latent, scaling="off"), 0.05)
    assert changed(*with_it) > 100
    assert changed(*without) == 0
    for name, values in with_it[0].tensors().items():
        assert values.dtype == with_it[1].tensors()[name].dtype, "back to integers"
        if values.dtype == np.int8:
            assert np.abs(values.astype(int)).max() <= 127


def test_narrow_gradients_move_nearly_the_same() -> None:
    wide, before = trained(Int8Qas(latent="float"), 0.05, 1)
    narrow, _ = trained(Int8Qas(latent="float", gradients="int8"), 0.05, 1)
    for name in wide.tensors():
        if name.endswith("weight") and not name.startswith("head"):
            moves = [net.tensors()[name].astype(int) - before.tensors()[name] for net in (wide, narrow)]
            assert np.linalg.norm(moves[0] - moves[1]) <= 0.25 * np.linalg.norm(moves[0]) + 2, name


def test_other_networks_are_refused() -> None:
    class Other:
        name = "other"

    with pytest.raises(UserError, match="int8-qas needs a network of 8-bit integers"):
        Int8Qas().begin(Other(), Learned({}))  # type: ignore[arg-type]
    assert Int8Qas().offers(Other()) == ()  # type: ignore[arg-type]
    real = GraphNetwork(in_floats(residual_net()), "floats")
    with pytest.raises(UserError, match="use --precision f32"):
        Int8Qas().begin(real, Learned({}))
    assert Int8Qas().offers(GraphNetwork(residual_net(), "made")) == ("int8-qas",)
    with pytest.raises(UserError, match="latent=f64 is not supported"):
        Int8Qas(latent="f64")


def test_the_compiled_step_of_a_device_is_that_of_the_slots() -> None:
    """The plan that a compiler emits and the slots move the same integers to the same places."""
    from haversack.models.graph import compiled

    net, _ = trained(Int8Qas(), 0.5, 1)
    graph = with_head(residual_net(3), 3, 0)
    factors = {name: values for name, (values, _) in factors_of(graph).items()}
    step = compiled(graph, dict.fromkeys(graph.parameters), factors=factors)
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    step.step(net.codes(pictures), np.array([0, 1, 2, 0]), 0.5)
    moved = 0
    for name, values in step.parameters.items():
        ours = net.tensors()[name]
        if values.dtype.kind == "f":
            assert np.allclose(ours, values, rtol=1e-3, atol=1e-5)
            continue
        # f32 and f64 may fall on two sides of a half
        assert np.abs(ours.astype(int) - values.astype(int)).max() <= 1, name
        assert (ours == values).mean() > 0.98, name
        moved += int((values != graph.constants[name]).sum())
    assert moved > 30
