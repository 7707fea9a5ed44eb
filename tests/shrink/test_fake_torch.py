"""Rounding that gradients pass: what it gives is what a pack stores, bit for bit; gradients go straight
through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="learning needs PyTorch")

from haversack.kernels import unpack  # noqa: E402
from haversack.kernels.products import quantize_activations  # noqa: E402
from haversack.models._blocks_torch import Point  # noqa: E402
from haversack.shrink._fake_torch import (  # noqa: E402
    Clipped,
    Int8Activations,
    Rescaled,
    fake_activations,
    fake_weight,
    nearest_codes,
    stored,
)
from haversack.shrink._precision import StoredKind  # noqa: E402
from haversack.shrink._rounding import choose_scales, grouped, levels, restored  # noqa: E402

FORMS = st.sampled_from([(3, 32), (3, 64), (3, 128), (4, 32), (4, 64), (4, 128), (8, None)])


def drawn(seed, rows, columns, tail=3):
    return np.random.default_rng(seed).standard_t(tail, (rows, columns)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(FORMS, st.integers(1, 33), st.integers(1, 200), st.integers(0, 2**31), st.booleans())
def test_what_was_learned_is_what_is_packed(form, rows, columns, seed, rescaled):
    bits, group = form
    weight = torch.from_numpy(drawn(seed, rows, columns))
    weight[0] = 0.0  # groups of zeros have the scale zero
    start = choose_scales(grouped(weight.numpy(), group), bits, "searched", half=group is not None)
    scales = (Rescaled if rescaled else Clipped)(start, group is not None)
    with torch.no_grad():
        scales.learned += 0.3 * torch.randn(scales.learned.shape)
        found = scales()
        fake = fake_weight(weight, found, bits, group)
        codes = nearest_codes(weight, found, bits, group)
    kept = stored(codes, found, StoredKind.of_bits(bits, group), columns)
    assert np.array_equal(unpack(kept.packed()), fake.numpy())
    assert np.array_equal(kept.scales, found.numpy())


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_codes_are_those_of_rounding_without_gradients(bits):
    group = None if bits == 8 else 32
    weight = drawn(bits, 8, 96)
    scales = choose_scales(grouped(weight, group), bits, "searched", half=group is not None)
    wide = grouped(weight, group) / scales[..., None]
    expected = np.clip(np.rint(wide), *levels(bits)).reshape(8, -1).astype(np.int8)
    fake = fake_weight(torch.from_numpy(weight), torch.from_numpy(scales), bits, group)
    assert np.array_equal(fake.numpy(), restored(expected, scales, group))


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("columns", [64, 96, 70])
def test_activations_are_those_of_the_kernels(group, columns):
    x = drawn(group + columns, 17, columns)
    x[3] = 0.0
    integers, scales = quantize_activations(x, group)
    expected = (integers.astype(np.float32) * scales[:, :, None]).reshape(17, -1)[:, :columns]
    assert np.array_equal(fake_activations(torch.from_numpy(x), group).numpy(), expected)


def test_gradients_go_straight_through_and_stop_where_codes_are_clipped():
    weight = torch.tensor([[0.3, -1.2, 5.0, -9.0]], requires_grad=True)
    scales = torch.tensor([[0.5]], requires_grad=True)
    fake = fake_weight(weight, scales, 4, 4)
    assert fake.tolist() == [[0.5, -1.0, 3.5, -4.0]]
    fake.sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    inside = (1 - 0.6) + (-2 + 2.4)  # code - weight / scale
    assert scales.grad.item() == pytest.approx(inside + 7 - 8)


def test_products_that_share_an_input_round_it_once():
    hooks = Int8Activations({"a": 32, "b": 32, "c": 64})
    x = torch.randn(2, 5, 64, requires_grad=True)
    first = hooks.activation(Point("a", "input"), x)
    assert hooks.activation(Point("b", "input"), x) is first
    assert hooks.activation(Point("c", "input"), x) is not first
    assert hooks.activation(Point("a", "output"), x) is x
    assert hooks.activation(Point("norm", "input"), x) is x
