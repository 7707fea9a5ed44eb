"""Gradients against finite differences of the function without rounding; what pruning leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.models.graph.nets import Maker, other_net, residual_net

from haversack.models.graph import Machine, backward, pruned, with_loss
from haversack.models.graph._gradients import (
    GradBias,
    GradInput,
    GradWeight,
    Kept,
    Masked,
    Update,
)
from haversack.models.graph._ir import Add, Conv2d, Linear, Softmax, Tensor
from haversack.models.graph.autodiff import gradients_of
from haversack.models.graph.training import HEAD, in_floats, with_head


def learned(graph, inputs, labels, rounding="none"):
    """Loss and gradient of every parameter, and of the input's first layer."""
    whole = backward(with_loss(graph))
    asked, names = gradients_of(whole, dict.fromkeys(graph.parameters))
    parameters = {
        name: graph.constants[name].astype(np.float64 if rounding == "none" else np.float32)
        for name in graph.parameters
    }
    machine = Machine(asked, rounding, parameters)
    values = machine.run({"x": inputs, "label": labels})
    return float(values["loss"]), {name: values[grad] for name, grad in names.items()}, parameters, asked


def loss_of(graph, parameters, inputs, labels):
    machine = Machine(with_loss(graph), "none", parameters)
    return float(machine.run({"x": inputs, "label": labels})["loss"])


@pytest.mark.parametrize("make", [residual_net, other_net])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_the_function_without_rounding(make, seed) -> None:
    """Central differences of the loss along random directions and single numbers, to 1e-4."""
    random = np.random.default_rng(seed)
    graph = with_head(make(seed), 4, seed)
    inputs = random.integers(-60, 60, (3, 8, 8, 3)).astype(np.float64)
    labels = random.integers(0, 4, 3)
    _, gradients, parameters, _ = learned(graph, inputs, labels)
    for name, gradient in gradients.items():
        scale = np.abs(gradient).max()
        assert scale > 0, name
        directions = [random.normal(size=gradient.shape), np.sign(gradient)]
        at = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        single = np.zeros(gradient.shape)
        single[at] = 1.0
        for direction in [*directions, single]:
            step = 1e-3 if name in HEAD else 1e-2
            held = parameters[name].copy()
            ends = []
            for sign in (1, -1):
                parameters[name][...] = held + sign * step * direction
                ends.append(loss_of(graph, parameters, inputs, labels))
            parameters[name][...] = held
            numeric, exact = (ends[0] - ends[1]) / (2 * step), float((gradient * direction).sum())
            size = np.linalg.norm(gradient) * np.linalg.norm(direction)
            assert abs(numeric - exact) <= 1e-4 * max(abs(exact), 0.05 * size), (name, numeric, exact)


def test_the_gradient_of_an_input_is_right_too() -> None:
    """A layer before the first makes the network's input an activation with a gradient."""
    graph = with_head(residual_net(2), 4, 0)
    whole = backward(with_loss(graph))
    first = graph.convolutions()[0].y
    asked, names = gradients_of(whole, {graph.convolutions()[0].bias: None})
    random = np.random.default_rng(3)
    inputs = random.integers(-60, 60, (1, 8, 8, 3)).astype(np.float64)
    label = np.array([1])
    parameters = {name: graph.constants[name].astype(np.float64) for name in graph.parameters}
    found = Machine(asked, "none", parameters).run({"x": inputs, "label": label})
    gradient = found[names[graph.convolutions()[0].bias]]
    direction = random.normal(size=gradient.shape)
    ends = []
    for sign in (1, -1):
        moved = dict(parameters)
        moved[graph.convolutions()[0].bias] = (
            parameters[graph.convolutions()[0].bias] + sign * 0.01 * direction
        )
        ends.append(loss_of(graph, moved, inputs, label))
    assert (ends[0] - ends[1]) / 0.02 == pytest.approx(float(gradient @ direction), rel=1e-4)
    assert any(isinstance(op, GradInput) for op in asked.ops) and first in asked.tensors


@pytest.mark.parametrize("bounded", [False, True])
def test_gradients_in_floats_are_those_of_pytorch(bounded: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    graph = in_floats(with_head(residual_net(1), 4, 0))
    if bounded:  # a ReLU within the sum, as ResNets have it
        ops = [replace(op, low=0.0) if isinstance(op, Add) else op for op in graph.ops]
        graph = replace(graph, ops=tuple(ops))
    random = np.random.default_rng(0)
    inputs = random.normal(size=(3, 8, 8, 3)).astype(np.float32)
    labels = np.array([0, 3, 1])
    loss, gradients, parameters, _ = learned(graph, inputs, labels, "float")
    held = {
        name: torch.from_numpy(values.astype(np.float64)).requires_grad_()
        for name, values in parameters.items()
    }
    values = {"x": torch.from_numpy(inputs.astype(np.float64)).permute(0, 3, 1, 2)}
    for op in graph.ops:
        kind = type(op).__name__
        if isinstance(op, Conv2d):
            weight = held[op.weight]
            depthwise = kind == "DepthwiseConv2d"
            weight = weight.permute(2, 0, 1)[:, None] if depthwise else weight.permute(0, 3, 1, 2)
            groups = weight.shape[0] if depthwise else 1
            y = functional.conv2d(values[op.x], weight, held[op.bias], op.stride, op.pads[0][0], 1, groups)
            values[op.y] = y.clamp(op.low, op.high)
        elif kind == "FullyConnected":
            values[op.y] = functional.linear(values[op.x], held[op.weight], held[op.bias])
        elif kind == "Add":
            values[op.y] = (values[op.x] + values[op.other]).clamp(op.low, op.high)
        elif kind == "AveragePool":
            values[op.y] = functional.avg_pool2d(values[op.x], op.size)
        else:
            values[op.writes[0]] = (
                values[op.reads[0]].permute(0, 2, 3, 1).flatten(1)
                if values[op.reads[0]].dim() == 4
                else values[op.reads[0]]
            )
    theirs = functional.cross_entropy(values["logits"], torch.from_numpy(labels))
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    for name, gradient in gradients.items():
        wanted = held[name].grad.numpy()
        assert np.abs(gradient - wanted).max() <= 2e-4 * np.abs(wanted).max() + 1e-7, name


def kinds(graph, kind):
    return [op for op in graph.ops if isinstance(op, kind)]


def test_only_what_is_wanted_is_left() -> None:
    graph = with_head(residual_net(), 4, 0)
    whole = backward(with_loss(graph))
    convs = graph.convolutions()
    assert len(kinds(whole, GradWeight)) == len(graph.linears())
    head = pruned(whole, dict.fromkeys(HEAD))
    assert not kinds(head, GradInput) and not kinds(head, Masked)
    assert all(op.mask is None for op in kinds(head, Linear))
    assert {op.parameter for op in kinds(head, Update)} == set(HEAD)
    last = convs[-1]
    top = pruned(whole, {last.bias: None, **dict.fromkeys(HEAD)})
    assert [op.y for op in kinds(top, Linear) if op.mask is not None] == [last.y]
    assert not [op for op in kinds(top, GradWeight) if op.kind != "dense"], (
        "no weight of a convolution learns"
    )
    deep = pruned(whole, {convs[0].bias: None})
    # one for each layer above, a gradient of the input of each
    assert len(kinds(deep, GradInput)) == len(graph.linears()) - 1
    assert not kinds(deep, GradWeight) and len(kinds(deep, GradBias)) == 1


@pytest.mark.parametrize("layer", [1, 2, 5])
def test_a_slice_of_channels_has_the_slice_of_the_gradient(layer) -> None:
    graph = with_head(residual_net(5), 4, 0)
    whole = backward(with_loss(graph))
    weight = graph.convolutions()[layer].weight
    random = np.random.default_rng(0)
    feeds = {
        "x": random.integers(-128, 128, (2, 8, 8, 3)).astype(np.int8),
        "label": np.array([0, 1]),
    }
    part = (0, 2, 5)
    found = []
    for channels in (None, part):
        asked, names = gradients_of(whole, {weight: channels})
        machine = Machine(asked)
        found.append(machine.run(feeds)[names[weight]])
        if channels is None:
            kept = machine.saved_nbytes
        else:
            assert [op.channels for op in kinds(asked, Kept)] == [part]
            assert machine.saved_nbytes < kept
    assert found[1].shape[-1] == 3
    assert np.allclose(found[0][..., list(part)], found[1], rtol=1e-5, atol=1e-9)


def test_a_graph_with_a_softmax_within_has_no_way_back() -> None:
    made = Maker(0)
    made.conv(4)
    made.tensors["soft"] = Tensor(
        "soft", made.tensors[made.at].shape, "int8", made.tensors[made.at].quantization
    )
    made.ops.append(Softmax(made.at, "soft"))
    made.at = "soft"
    made.dense(3)
    with pytest.raises(ValueError, match="Softmax has no way back"):
        backward(with_loss(with_head(made.graph(), 3, 0)))
    with pytest.raises(ValueError, match="needs logits in f32"):
        with_loss(residual_net())
