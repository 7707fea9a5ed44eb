"""MobileTL: known values, the memory formula, gradients beside plain autograd, what PyTorch really keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

import torch.nn.functional as functional  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from haversack.core import index  # noqa: E402
from haversack.core.errors import UserError  # noqa: E402
from haversack.models.vision import _counts, mobilenetv2, mobilenetv3  # noqa: E402
from haversack.models.vision._counts import Way  # noqa: E402
from haversack.models.vision._inverted_residual_torch import Block, PictureModule  # noqa: E402
from haversack.models.vision._lean_torch import FrozenConvolution  # noqa: E402
from haversack.models.vision._record import PictureNet, statistic  # noqa: E402
from haversack.train._meter_torch import SavedTensors  # noqa: E402
from haversack.train.parameters import mobiletl as maths  # noqa: E402
from haversack.train.parameters.mobiletl import MobileTL, mobiletl_units, standard_units  # noqa: E402
from haversack.train.parameters.mobiletl_torch import (  # noqa: E402
    BinaryMaskHardSwish,
    BinaryMaskReLU6,
    FrozenAffineShift,
    exchange,
    mobiletl,
    packed,
    unpacked,
)

POINTS = np.array([-3, -1, 0, 1, 3], np.float32)
TINY = mobilenetv3.record("mobilenetv3_tiny", 5)
SMALL = mobilenetv3.record("mobilenetv3_small_050", 5)
SECOND = mobilenetv2.record("mobilenetv2_035", 5)


def module_of(record: PictureNet, seed: int = 0) -> PictureModule:
    """With statistics that are not the initial ones."""
    module = PictureModule(record)
    module.initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.tensors().items():
            if name.endswith(("running_var", "norm.weight")):
                tensor.uniform_(0.7, 1.4, generator=generator)
            elif name.endswith(("running_mean", "norm.bias")):
                tensor.normal_(0, 0.1, generator=generator)
    return module


def pictures(rows: int, size: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(rows, 3, size, size, generator=generator), torch.arange(rows) % 5


# known values


def test_the_shift_only_norm_by_hand() -> None:
    """a = 0.5, beta = 1: 2 becomes 2; a gradient of 3 becomes 1.5, and 3 for beta; nothing is kept."""
    x = torch.tensor([[[[2.0]]]], requires_grad=True)
    gamma, mean, variance = torch.tensor([0.5]), torch.zeros(1), torch.ones(1)
    beta = torch.tensor([1.0], requires_grad=True)
    with SavedTensors([gamma, variance]) as saved:
        y = FrozenAffineShift.apply(x, gamma, beta, mean, variance, 0.0)
    assert y.item() == 2.0
    assert saved.nbytes == 0
    y.backward(torch.tensor([[[[3.0]]]]))
    assert (x.grad.item(), beta.grad.item()) == (1.5, 3.0)
    assert maths.affine_shift(np.full((1, 1, 1, 1), 2, np.float32), np.array([0.5]), np.array([1.0])) == 2.0
    inward, shift = maths.affine_shift_back(np.full((1, 1, 1, 1), 3, np.float32), np.array([0.5]))
    assert (inward.item(), shift.item()) == (1.5, 3.0)


def test_hard_swish_by_hand() -> None:
    values = [0, -1 / 3, 0, 2 / 3, 3]
    assert np.allclose(maths.hard_swish(POINTS), values, atol=1e-6)
    assert np.allclose(maths.hard_swish_slope(POINTS), [0, 1 / 6, 0.5, 5 / 6, 1], atol=1e-6)
    assert np.unpackbits(maths.signed_mask(POINTS, "hard-swish"), count=5).tolist() == [0, 0, 0, 1, 1]
    x = torch.from_numpy(POINTS).requires_grad_()
    y = BinaryMaskHardSwish.apply(x)
    assert np.allclose(y.detach().numpy(), values, atol=1e-6)
    y.sum().backward()
    assert x.grad.tolist() == [0, 0, 0, 1, 1]


def test_relu6_s_mask_is_its_slope() -> None:
    x = torch.tensor([-1.0, 0.0, 1e-7, 3.0, 5.999, 6.0, 7.0])
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    made = BinaryMaskReLU6.apply(one)
    assert torch.equal(made, functional.relu6(other))
    made.backward(torch.arange(7.0))
    functional.relu6(other).backward(torch.arange(7.0))
    assert torch.equal(one.grad, other.grad)
    assert np.array_equal(
        one.grad.numpy(),
        maths.signed_back(np.arange(7, dtype=np.float32), maths.signed_mask(x.numpy(), "relu6")),
    )


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_masks_are_packed_eight_a_byte(bits: list[bool]) -> None:
    mask = torch.tensor(bits)
    found = packed(mask)
    assert found.dtype == torch.uint8
    assert found.numel() == -(-len(bits) // 8)
    assert torch.equal(unpacked(found, mask), mask)
    assert np.array_equal(found.numpy(), np.packbits(np.array(bits)))


def test_the_formula_s_published_values() -> None:
    assert standard_units(6) == 26.375
    assert mobiletl_units(6) == 14.375
    assert standard_units(6, hard_swish=True, squeeze=True) == 44
    assert mobiletl_units(6, squeeze=True) == 20.375
    assert (standard_units(3), mobiletl_units(3)) == (14.1875, 8.1875)
    assert (standard_units(4), mobiletl_units(4)) == (18.25, 10.25)
    assert 1 - mobiletl_units(1e9) / standard_units(1e9) == pytest.approx(0.5, abs=0.01)


# what is kept


def kept_by_hooks(block: Block, way: Way, side: int, rows: int) -> int:
    x = torch.randn(rows, block.block.inputs, side, side, requires_grad=True)
    with SavedTensors(beside=[*block.parameters(), *block.buffers()]) as saved:
        block(x)
    return saved.nbytes


@pytest.mark.parametrize(
    ("record", "standard", "ours", "saving"),
    [(SECOND, 26.375, 14.375, 45.5), (TINY, 44.0, 20.375, 53.7)],
    ids=["V2", "V3 with squeeze"],
)
def test_a_block_keeps_what_the_formula_says(
    record: PictureNet, standard: float, ours: float, saving: float
) -> None:
    """In PyTorch, to the byte beside statistics and the squeeze's own small vectors; and in percent."""
    module, rows, side = module_of(record), 8, 16
    number = next(n for n in reversed(range(len(record.blocks))) if record.blocks[n].residual)
    unit = 4 * rows * side * side * record.blocks[number].inputs
    kept = []
    for method, units in (
        (MobileTL(blocks=len(record.blocks), act="exact", inner_norm="full"), standard),
        (MobileTL(blocks=len(record.blocks)), ours),
    ):
        way = mobiletl(module, method)
        found = kept_by_hooks(module.blocks[number], way, side, rows)
        assert found == _counts.kept_by_block(record.blocks[number], way, rows, side)
        assert 0 <= found - units * unit < 0.012 * unit * units
        kept.append(found)
    assert 100 * (1 - kept[1] / kept[0]) == pytest.approx(saving, abs=0.5)


@pytest.mark.parametrize("record", [TINY, SMALL, SECOND], ids=lambda record: record.variant)
@pytest.mark.parametrize("blocks", [1, 3, None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"act": "exact", "inner_norm": "full"},
        {"inner_norm": "frozen", "last_norm": "frozen"},
        {"se": "frozen"},
        {"act": "exact"},
    ],
)
def test_the_counter_agrees_with_pytorch(
    record: PictureNet, blocks: int | None, options: dict[str, str]
) -> None:
    module = module_of(record)
    way = mobiletl(module, MobileTL(blocks=blocks or len(record.blocks), **options))
    x, labels = pictures(4, 32)
    with SavedTensors(beside=[*module.tensors().values(), labels]) as saved:
        functional.cross_entropy(module(x), labels)
    assert saved.nbytes == sum(_counts.kept(record, way, 4, 32).values())


def test_three_top_blocks_keep_at_least_two_fifths_less() -> None:
    for record in (
        TINY,
        SMALL,
        SECOND,
        mobilenetv2.record("mobilenetv2_100"),
        mobilenetv3.record("mobilenetv3_large_100"),
    ):
        plain = MobileTL(blocks=3, act="exact", inner_norm="full").report(record, 8)
        ours = MobileTL(blocks=3).report(record, 8)
        assert ours.saved_nbytes <= 0.6 * plain.saved_nbytes, record.variant


# gradients


def gradients(module: PictureModule, x: Any, labels: Any) -> dict[str, Any]:
    module.zero_grad(set_to_none=True)
    functional.cross_entropy(module(x), labels).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class Stock(nn.Module):
    """The same network of PyTorch's own layers."""

    def __init__(self, module: PictureModule, measuring: bool) -> None:
        super().__init__()
        self.module = module
        self.measuring = measuring

    def unit(self, unit: Any, kind: Any, x: Any) -> Any:
        conv, norm = unit.conv, unit.norm
        x = functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, 1, conv.groups)
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        x = functional.batch_norm(x, mean, variance, norm.weight, norm.bias, self.measuring, 0.1, norm.eps)
        return {
            "relu": functional.relu,
            "relu6": functional.relu6,
            "hard-swish": functional.hardswish,
            None: lambda y: y,
        }[kind](x)

    def forward(self, x: Any) -> Any:
        module, record = self.module, self.module.record
        x = self.unit(module.stem, record.stem.activation, x)
        for block, said in zip(module.blocks, record.blocks, strict=True):
            came = x
            if said.expand is not None:
                x = self.unit(block.expand, said.expand.activation, x)
            x = self.unit(block.depthwise, said.depthwise.activation, x)
            if said.squeeze is not None:
                s = block.squeeze
                inner = functional.conv2d(x.mean((2, 3), keepdim=True), s.reduce.weight, s.reduce.bias).relu()
                x = x * functional.hardsigmoid(functional.conv2d(inner, s.expand.weight, s.expand.bias))
            x = self.unit(block.project, None, x)
            x = x + came if said.residual else x
        x = self.unit(module.final, record.final.activation, x).mean((2, 3))
        if module.hidden is not None:
            x = functional.hardswish(module.hidden(x))
        return module.classifier(x)


@pytest.mark.parametrize("record", [TINY, SMALL, SECOND], ids=lambda record: record.variant)
@pytest.mark.parametrize("measuring", [False, True])
def test_exact_and_full_is_plain_autograd(record: PictureNet, measuring: bool) -> None:
    """In double precision to 1e-6 of the largest gradient, with fixed statistics and with the batch's."""
    module = module_of(record)
    way = mobiletl(module, MobileTL(blocks=len(record.blocks), act="exact", inner_norm="full"))
    module.double()
    for unit in module.units().values():
        unit.norm.measures = measuring
    x, labels = pictures(6, 48)
    found = gradients(module, x.double(), labels)
    exchange(module, replace(way, masked=frozenset(), batch_norms=frozenset()))
    expected = gradients(Stock(module, measuring), x.double(), labels)  # type: ignore[arg-type]
    assert {f"module.{name}" for name in found} == set(expected)
    for name, gradient in found.items():
        other = expected[f"module.{name}"]
        assert (gradient - other).abs().max() <= 1e-6 * other.abs().max(), name


def test_signed_equals_exact_for_relu6() -> None:
    module = module_of(SECOND)
    x, labels = pictures(6, 48)
    found = []
    for act in ("signed", "exact"):
        mobiletl(module, MobileTL(blocks=5, act=act))
        found.append(gradients(module, x, labels))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(("deviation", "cosine"), [(0.5, 0.849), (1.0, 0.903), (3.0, 0.946)])
def test_signed_hard_swish_points_about_where_the_exact_one_does(deviation: float, cosine: float) -> None:
    """For values drawn around 0: E[f' M] / sqrt(E[f'^2] E[M])."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(1)) * deviation
    outward = torch.randn(400_000, generator=torch.Generator().manual_seed(2))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    BinaryMaskHardSwish.apply(one).backward(outward)
    functional.hardswish(other).backward(outward)
    assert functional.cosine_similarity(one.grad, other.grad, dim=0) == pytest.approx(cosine, abs=0.006)


def test_a_frozen_convolution_passes_the_gradient_on() -> None:
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, 5, 5, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: FrozenConvolution.apply(a, weight, b, 2, 2, 2), (x, bias))
    with SavedTensors([weight]) as saved:
        FrozenConvolution.apply(x, weight, bias, 2, 2, 2)
    assert saved.nbytes == 0


def test_shift_only_norms_equal_autograd_of_fixed_statistics() -> None:
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    gamma, mean = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    variance = torch.rand(4, dtype=torch.float64) + 0.1
    beta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: FrozenAffineShift.apply(a, gamma, b, mean, variance, 1e-3), (x, beta)
    )
    expected = functional.batch_norm(x, mean, variance, gamma, beta, False, 0.1, 1e-3)
    assert torch.allclose(FrozenAffineShift.apply(x, gamma, beta, mean, variance, 1e-3), expected)


# what learns, what moves, what it costs


def test_what_learns_is_the_top() -> None:
    way = MobileTL(blocks=3).way(TINY)
    tops = ("blocks.6.", "blocks.7.", "blocks.8.", "final.", "hidden.", "classifier.")
    assert all(name.startswith(tops) for name in way.learned)
    assert way.batch_norms == {f"blocks.{n}.project" for n in (6, 7, 8)}
    inner = {name for name in way.learned if ".norm.weight" in name}
    assert inner == {f"blocks.{n}.project.norm.weight" for n in (6, 7, 8)}
    assert "final.norm.bias" in way.learned
    frozen = MobileTL(blocks=3, se="frozen", inner_norm="frozen", last_norm="frozen").way(TINY)
    assert not any(".norm." in name or ".squeeze." in name for name in frozen.learned)
    assert frozen.batch_norms == frozenset()


def test_nothing_below_the_top_has_a_gradient_or_moves() -> None:
    module = module_of(TINY)
    way = mobiletl(module, MobileTL(blocks=2))
    before = {name: array.copy() for name, array in module.arrays().items()}
    x, labels = pictures(8, 32)
    found = gradients(module, x, labels)
    assert set(found) == set(way.learned)
    moved = {name for name, array in module.arrays().items() if not np.array_equal(array, before[name])}
    assert moved == {
        f"{layer}.norm.{part}" for layer in way.batch_norms for part in ("running_mean", "running_var")
    }
    assert all(statistic(name) for name in moved)


def test_products_by_the_rule() -> None:
    """Everything learning costs three passes, less the first layer's inward gradient; one passes cost one
    and, above the lowest that learns, twice."""
    record = mobilenetv3.record("mobilenetv3_large_100", 10)
    layers = _counts.products(record)
    forward = sum(layers.values())
    everything = Way(frozenset(name for name in record.tensors() if not statistic(name)))
    assert _counts.products_back(record, everything) == 2 * forward - layers["stem"]
    top = MobileTL(blocks=1).way(record)
    inside = sum(
        count
        for name, count in layers.items()
        if not name.startswith(("stem", *(f"blocks.{n}." for n in range(14))))
    )
    assert _counts.products_back(record, top) == 2 * inside - layers["blocks.14.expand"]
    ours = MobileTL(blocks=5).report(record, 8)
    share = (ours.forward_products + ours.backward_products) / 8 / (3 * forward - layers["stem"])
    assert 0.64 <= share <= 0.70  # the published step has 36 % fewer


def test_a_report_s_lines() -> None:
    method = MobileTL(blocks=2)
    report = method.report(TINY, 4, 48)
    numbers = sum(int(np.prod(TINY.tensors()[name])) for name in method.way(TINY).learned)
    assert report.parameter_nbytes == 4 * numbers
    assert report.optimizer_nbytes == 8 * numbers
    assert set(report.saved) == {"blocks.7", "blocks.8", "final", "classifier", "loss"}
    assert report.saved_nbytes == sum(report.saved.values())
    assert report.forward_products == 4 * sum(_counts.products(TINY, 48).values())


def test_the_exchange_is_undone_by_the_next() -> None:
    module = module_of(TINY)
    x, labels = pictures(4, 32)
    mobiletl(module, MobileTL(blocks=9, act="exact", inner_norm="full"))
    plain = [type(unit.act) for unit in module.units().values()]
    mobiletl(module, MobileTL(blocks=9))
    mobiletl(module, MobileTL(blocks=1, act="exact", inner_norm="frozen", last_norm="frozen"))
    assert [type(unit.act) for unit in module.units().values()] == plain
    assert not any(unit.norm.measures for unit in module.units().values())
    assert set(gradients(module, x, labels)) == {
        name
        for name in dict(module.named_parameters())
        if name.startswith(("blocks.8", "final", "hidden", "classifier")) and ".norm." not in name
    }


# refusals


def test_a_module_without_such_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no inverted residual blocks"):
        mobiletl(nn.Linear(3, 3), MobileTL())
    empty = PictureModule(replace(TINY, blocks=()))
    with pytest.raises(UserError, match="no inverted residual blocks"):
        mobiletl(empty, MobileTL(blocks=1))


@pytest.mark.parametrize("blocks", [0, -1, 10])
def test_more_blocks_than_there_are_are_refused(blocks: int) -> None:
    with pytest.raises(UserError, match=f"blocks={blocks} is not possible: mobilenetv3_tiny has 9") as caught:
        mobiletl(module_of(TINY), MobileTL(blocks=blocks))
    assert caught.value.nearest == min(max(blocks, 1), 9)


def test_another_norm_needs_to_be_named() -> None:
    module = module_of(TINY)
    module.blocks[8].project.norm = nn.GroupNorm(4, 48)
    with pytest.raises(UserError, match=r"blocks\.8\.project has a GroupNorm"):
        mobiletl(module, MobileTL(blocks=2))
    way = mobiletl(module, MobileTL(blocks=2), norms={nn.GroupNorm: "full"})
    assert "blocks.8.project.norm.weight" in way.learned
    x, labels = pictures(4, 32)
    assert set(gradients(module, x, labels)) == set(way.learned)
    way = mobiletl(module, MobileTL(blocks=2), norms={nn.GroupNorm: "frozen"})
    assert not any(name.startswith("blocks.8.project.norm") for name in way.learned)
    mobiletl(module, MobileTL(blocks=1, inner_norm="shift"), norms={nn.GroupNorm: "full"})


@pytest.mark.parametrize(
    "choice", ["mobiletl:act=float", "mobiletl:inner_norm=half", "mobiletl:se=none", "mobiletl:k=3"]
)
def test_other_options_are_refused(choice: str) -> None:
    with pytest.raises(UserError):
        index.create("train", "parameters", choice)
