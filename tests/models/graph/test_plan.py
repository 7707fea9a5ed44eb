"""Schedules and places in memory: no tensors share bytes while alive, near what is alive at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.graph.nets import data, other_net, residual_net

from haversack.core.errors import UserError
from haversack.models.graph import Machine, backward, compiled, load_mcu, pruned, with_loss
from haversack.models.graph._execute import KERNELS
from haversack.models.graph._gradients import LABEL, LOSS, STEPS, BiasStep, GradBias, GradWeight, Step, Update
from haversack.models.graph.plan import (
    Life,
    arena,
    faults,
    fused,
    lifetimes,
    lower_bound,
    naive_nbytes,
    parameter_nbytes,
    reordered,
)
from haversack.models.graph.training import HEAD, conv_names, with_head
from haversack.train.parameters.sparse import Scheme, learned_channels
from haversack.train.precision.int8_qas import factors_of


def wanted_of(graph, layers, channels=None):
    found = {}
    for weight, bias in conv_names(graph)[-layers:]:
        found |= {weight: channels, bias: None}
    return {**found, **dict.fromkeys(HEAD)}


@pytest.mark.parametrize("layers", [1, 3, 6])
@pytest.mark.parametrize("make", [residual_net, other_net])
def test_a_compiled_step_changes_what_the_plain_one_changes(make, layers) -> None:
    """Fused and reordered, one row or four, in floats or rounded: as gradients and then updates."""
    graph = with_head(make(1), 4, 0)
    random = np.random.default_rng(0)
    inputs = random.integers(-128, 128, (4, 8, 8, 3)).astype(np.int8)
    labels = random.integers(0, 4, 4)
    wanted = wanted_of(graph, layers)
    factors = {name: values for name, (values, _) in factors_of(graph).items()}
    for latent in ("int8", "float"):
        step = compiled(graph, wanted, latent=latent, factors=factors)
        plain = {name: values.copy() for name, values in step.parameters.items()}
        whole = pruned(backward(with_loss(graph)), wanted, factors=factors)
        machine = Machine(whole, parameters=plain)
        loss = step.step(inputs, labels, 0.2)
        assert loss == machine.run({"x": inputs, LABEL: labels, "rate": 0.2})[LOSS]
        for name, values in step.parameters.items():
            assert latent == "int8" or (values != graph.constants[name]).any(), name
            assert np.allclose(values, plain[name], rtol=1e-6), name
        assert any((values != graph.constants[name]).any() for name, values in step.parameters.items())


def test_updates_come_as_soon_as_their_gradient() -> None:
    graph = with_head(residual_net(), 4, 0)
    whole = pruned(backward(with_loss(graph)), wanted_of(graph, 6))
    ready = reordered(fused(whole))
    assert not [op for op in ready.ops if isinstance(op, Update | GradWeight | GradBias)]
    steps = [i for i, op in enumerate(ready.ops) if isinstance(op, STEPS)]
    assert steps[0] < len(ready.ops) - len(steps), "not all at the end"
    for number in steps:
        op = ready.ops[number]
        later = [other for other in ready.ops[number + 1 :] if op.parameter in other.reads]
        assert not later, "nothing reads a parameter that has changed"
        assert isinstance(op, Step | BiasStep)
    unfused = reordered(whole)
    alive = [
        sum(
            life.first <= i <= life.last
            for life in lifetimes(unfused)
            if life.names[0].startswith("grad:layer")
        )
        for i in range(len(unfused.ops))
    ]
    assert max(alive) <= 2, "gradients of two layers never lie side by side"


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=14)
)
def test_any_lives_are_placed_without_overlap(pieces) -> None:
    lives = [Life((str(i),), size, first, first + more) for i, (size, first, more) in enumerate(pieces)]
    found = arena(lives)
    assert found.bound <= found.nbytes <= sum(-(-life.nbytes // 4) * 4 for life in lives)
    assert found.bound == lower_bound(lives)
    placed = list(zip(found.lives, found.offsets, strict=True))
    for i, (life, offset) in enumerate(placed):
        assert offset % 4 == 0 and offset + life.nbytes <= found.nbytes
        for other, at in placed[i + 1 :]:
            if life.meets(other):
                assert offset + life.nbytes <= at or at + other.nbytes <= offset


@pytest.mark.parametrize("make", [residual_net, other_net])
def test_a_plan_has_no_faults_and_a_broken_one_is_found_out(make) -> None:
    graph = with_head(make(), 4, 0)
    step = compiled(graph, wanted_of(graph, 4, (0, 1, 3)))
    assert faults(step.graph, step.arena) == []
    on_top = replace(step.arena, offsets=(0,) * len(step.arena.offsets))
    assert any("share bytes" in each for each in faults(step.graph, on_top))
    assert any("outside" in each for each in faults(step.graph, replace(step.arena, nbytes=16)))
    short = replace(step.arena, lives=step.arena.lives[1:], offsets=step.arena.offsets[1:])
    assert any("has no place" in each for each in faults(step.graph, short))


def run_inside(step, inputs, labels, rate):
    """A step whose every tensor lies in the arena's bytes and nowhere else; one row."""
    memory = np.zeros(step.arena.nbytes, np.uint8)
    places, machine = step.arena.places(), step.machine
    kinds = {"int8": np.int8, "f32": np.float32, "int32": np.int32}

    def put(name, value):
        at, size = places[name]
        tensor = step.graph.tensors[name]
        if tensor.dtype == "bit":
            raw = np.asarray(value, np.uint8)
        else:
            raw = np.ascontiguousarray(value, kinds[tensor.dtype]).reshape(-1).view(np.uint8)
        assert len(raw) == size, name
        memory[at : at + size] = raw

    def get(name):
        at, size = places[name]
        tensor = step.graph.tensors[name]
        raw = memory[at : at + size].copy()
        if tensor.dtype == "bit":
            return raw
        values = raw.view(kinds[tensor.dtype]).reshape(1, *tensor.shape)
        return values[0] if not tensor.shape else values

    put(step.input, inputs)
    put(LABEL, labels)
    for op in step.graph.ops:
        values = {"rate": rate}
        for name in op.reads:
            if name in places:
                values[name] = get(name)
        if LABEL in values:
            values[LABEL] = values[LABEL].reshape(1).astype(np.int64)
        KERNELS[type(op)](machine, op, values)
        for name in op.writes:
            put(name, values[name])
    return float(get(LOSS))


@pytest.mark.parametrize("make", [residual_net, other_net])
def test_a_step_runs_inside_its_arena(make) -> None:
    """Two plans side by side: one in free memory, one in the bytes of the arena alone, to the bit."""
    graph = with_head(make(2), 4, 0)
    channels = (0, 1, 2)
    free, inside = (compiled(graph, wanted_of(graph, 5, channels)) for _ in range(2))
    random = np.random.default_rng(1)
    for _ in range(3):
        inputs = random.integers(-128, 128, (1, 8, 8, 3)).astype(np.int8)
        label = random.integers(0, 4, 1)
        assert free.step(inputs, label, 20.0) == pytest.approx(
            run_inside(inside, inputs, label, 20.0), rel=1e-6
        )
    for name, values in free.parameters.items():
        assert (values == inside.parameters[name]).all(), name


def test_a_real_step_runs_inside_its_arena_and_below_256_kb() -> None:

    graph = with_head(load_mcu(data("models", "mcu", "mcunet-5fps.pkl")), 10, 0)
    scheme = Scheme(22, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 0.125, 0.25))
    wanted = {**learned_channels(graph, scheme), **dict.fromkeys(HEAD)}
    factors = {name: values for name, (values, _) in factors_of(graph).items()}
    free, inside = (compiled(graph, wanted, factors=factors) for _ in range(2))
    assert faults(inside.graph, inside.arena) == []
    assert inside.arena.nbytes < 161 * 1024
    assert inside.arena.nbytes <= 1.01 * inside.arena.bound
    assert inside.peak_sram < 256 * 1024
    assert inside.flash < 1024 * 1024
    assert naive_nbytes(backward(with_loss(graph))) > 15 * inside.arena.nbytes
    # 573,184 bits of the published count, and the head
    assert parameter_nbytes(inside.graph) == 573_184 // 8 + 4 * (10 * 160 + 10)
    inputs = np.random.default_rng(0).integers(-128, 128, (1, 128, 128, 3)).astype(np.int8)
    label = np.array([4])
    assert free.step(inputs, label, 0.01) == run_inside(inside, inputs, label, 0.01)
    changed = 0
    for name, values in free.parameters.items():
        assert (values == inside.parameters[name]).all(), name
        changed += int((values != graph.constants[name]).any())
    assert changed > 10


def test_learning_works_in_integers() -> None:
    graph = with_head(load_mcu(data("models", "mcu", "proxyless-w0.3.pkl")), 2, 0)

    factors = {name: values for name, (values, _) in factors_of(graph).items()}
    step = compiled(graph, wanted_of(graph, 4), factors=factors)
    inputs = np.random.default_rng(0).integers(-128, 0, (4, 128, 128, 3)).astype(np.int8)
    labels = np.array([0, 1, 0, 1])
    inputs[1::2] += 100
    losses = [step.step(inputs, labels, 0.02) for _ in range(12)]
    assert losses[-1] < 0.95 * losses[0]
    assert all(values.dtype in (np.int8, np.int32, np.float32) for values in step.parameters.values())


@pytest.mark.parametrize(
    ("inputs", "labels", "said"),
    [
        (np.zeros((2, 8, 9, 3), np.int8), [0, 1], "takes rows of 8 x 8 x 3 with a label each, and got"),
        (np.zeros((2, 8, 8, 3), np.int8), [0], "with 1"),
        (np.zeros((2, 8, 8, 3), np.int8), [0, 4], "the label 4 is beyond the head, which has 4 outputs"),
        (np.zeros((2, 8, 8, 3), np.int8), [-1, 0], "the label -1 is beyond the head"),
    ],
)
def test_rows_that_do_not_fit_are_refused(inputs, labels, said) -> None:
    graph = with_head(residual_net(), 4, 0)
    step = compiled(graph, wanted_of(graph, 2))
    with pytest.raises(UserError, match=said) as caught:
        step.step(inputs, np.array(labels), 0.1)
    assert caught.value.exit_code == 2


def test_a_loss_that_is_not_finite_stops_before_anything_changes() -> None:
    graph = with_head(residual_net(), 4, 0)
    step = compiled(graph, wanted_of(graph, 2))
    step.parameters["head.weight"][0, 0] = np.nan
    before = {name: values.copy() for name, values in step.parameters.items()}
    inputs = np.full((1, 8, 8, 3), 100, np.int8)
    with pytest.raises(UserError, match="the loss is not finite; no step was taken; lower the rate"):
        step.step(inputs, np.array([1]), 0.1)
    for name, values in step.parameters.items():
        assert np.array_equal(values, before[name], equal_nan=values.dtype.kind == "f")
