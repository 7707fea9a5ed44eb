"""Low rank on PyTorch modules: which layers, how many parameters, what is kept, and what is refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from haversack.core.errors import UserError
from haversack.shrink.structure import factorize, merge
from haversack.shrink.structure._factored_torch import CED, LED
from haversack.shrink.structure.low_rank_torch import count

pytestmark = pytest.mark.filterwarnings("ignore:.*stays:UserWarning")


class Tower(nn.Module):
    """Linear and convolution layers deeper than the root, and a head beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 48, 3, padding=1, stride=2, groups=2),
            nn.ReLU(),
            nn.Conv2d(48, 32, 1, dilation=2, padding_mode="reflect", padding=1),
            nn.Flatten(),
            nn.Linear(32 * 36, 64),
            nn.ReLU(),
            nn.Linear(64, 48, bias=False),
        )
        self.head = nn.Linear(48, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


@pytest.fixture()
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().eval()


X = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("rank", "only", "expected"),
    [
        (256, None, 66_818_304),
        (0.4, None, 58_052_352),
        (0.2, ["encoder.layer.6", "encoder.layer.7", "encoder.layer.8", "encoder.layer.9",
               "encoder.layer.10", "encoder.layer.11", "pooler"], 74_965_248),
    ],
)  # fmt: skip
def test_parameters_of_bert_base_to_the_unit(rank: float, only: list[str] | None, expected: int) -> None:
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig())
    assert count(model) == 109_482_240
    made, report = factorize(model, rank, only=only)
    assert report.parameters_after == count(made) == expected
    assert count(model) == 109_482_240, "the model itself is not touched"


@pytest.mark.parametrize(("rank", "expected"), [(256, 77_253_888), (0.4, 73_383_168)])
def test_parameters_of_gpt_2_to_the_unit(rank: float, expected: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    made, report = factorize(model, rank)
    assert (report.parameters_before, count(made)) == (124_439_808, expected)
    assert type(made.lm_head) is nn.Linear


def test_direct_children_of_the_root_stay_unless_named(tower: Tower) -> None:
    made, report = factorize(tower, 0.5)
    assert type(made.head) is nn.Linear
    assert report.layers[-1].reason == "a direct child of the root"
    assert isinstance(made.body[4], LED) and isinstance(made.body[2], CED)
    named, _ = factorize(tower, 0.5, only=["head"])
    assert isinstance(named.head, LED)
    assert type(named.body[4]) is nn.Linear
    bare, _ = factorize(nn.Linear(40, 40), 8)
    assert isinstance(bare, LED)


def test_only_and_skip_take_names_patterns_and_modules(tower: Tower) -> None:
    for only in (["body.4"], ["body.[4]"], [tower.body[4]]):
        made, _ = factorize(tower, 8, only=only)
        assert isinstance(made.body[4], LED) and type(made.body[6]) is nn.Linear
    made, _ = factorize(tower, 8, skip=["body.4"])
    assert type(made.body[4]) is nn.Linear and isinstance(made.body[6], LED)
    with pytest.raises(UserError, match=r"body\.4"):
        factorize(tower, 8, only=["body.44"])
    with pytest.raises(UserError, match="no part"):
        factorize(tower, 8, only=[nn.Linear(3, 3)])


def test_names_of_weights(tower: Tower) -> None:
    made, _ = factorize(tower, 0.9)
    names = set(made.state_dict())
    assert {"body.4.led.0.weight", "body.4.led.1.weight", "body.4.led.1.bias"} <= names
    assert {"body.2.ced.0.weight", "body.2.ced.1.weight", "body.2.ced.1.bias"} <= names
    assert "body.4.led.0.bias" not in names and "body.6.led.1.bias" not in names


def test_full_rank_reproduces_every_kind_of_layer() -> None:
    """Ranks at which nothing is lost: a low-rank weight is put in first."""
    torch.manual_seed(3)
    layers: list[tuple[Any, torch.Tensor]] = [
        (nn.Linear(48, 40), torch.randn(5, 2, 48)),
        (nn.Conv1d(24, 32, 3, stride=2, padding=1), torch.randn(2, 24, 11)),
        (nn.Conv2d(16, 32, 3, groups=2, padding="same"), torch.randn(2, 16, 6, 6)),
        (nn.Conv3d(12, 16, 3, dilation=2, bias=False), torch.randn(2, 12, 7, 7, 7)),
    ]
    for layer, x in layers:
        groups = getattr(layer, "groups", 1)
        with torch.no_grad():
            flat = layer.weight.reshape(groups, layer.weight.shape[0] // groups, -1)
            left, values, right = torch.linalg.svd(flat, full_matrices=False)
            low = (left[..., :2] * values[:, None, :2]) @ right[:, :2]
            layer.weight.copy_(low.reshape(layer.weight.shape))
        made, report = factorize(layer, 2 * groups, limit="kernel")
        assert report.layers[0].error == pytest.approx(0, abs=1e-5)
        torch.testing.assert_close(made(x), layer(x), atol=1e-5, rtol=1e-5)
        back = merge(made)
        assert type(back) is type(layer)
        torch.testing.assert_close(back(x), layer(x), atol=1e-5, rtol=1e-5)


def test_gpt_2_s_linear_layer_counts_and_comes_back() -> None:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(60, 40)
    made, report = factorize(layer, 12)
    assert isinstance(made, LED) and (report.layers[0].inputs, report.layers[0].outputs) == (40, 60)
    best = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)
    expected = math.sqrt(float(np.square(best[12:]).sum() / np.square(best).sum()))
    assert report.layers[0].error == pytest.approx(expected, rel=1e-3)
    x = torch.randn(3, 40)
    back = merge(made)
    assert type(back) is Conv1D and back.weight.shape == layer.weight.shape
    torch.testing.assert_close(back(x), made(x), atol=1e-5, rtol=1e-5)


def test_type_requires_grad_mode_and_bias_are_kept(tower: Tower) -> None:
    tower = tower.to(torch.bfloat16).train()
    tower.body[4].weight.requires_grad_(False)
    tower.body[6].eval()
    made, _ = factorize(tower, 8)
    first, second = made.body[4].led
    assert first.weight.dtype == second.weight.dtype == torch.bfloat16
    assert not first.weight.requires_grad and second.bias.requires_grad
    assert made.body[4].training and not made.body[6].training
    assert torch.equal(second.bias, tower.body[4].bias)
    in_place, _ = factorize(tower, 8, copy=False)
    assert in_place is tower and isinstance(tower.body[4], LED)


def test_a_layer_in_two_places_is_factored_once() -> None:
    shared = nn.Linear(40, 40)
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared))
    made, report = factorize(model, 8)
    assert made[0][0] is made[1][0] and isinstance(made[0][0], LED)
    assert len(report.layers) == 1
    assert report.parameters_after == 8 * 80 + 40


def test_a_weight_that_two_layers_share_has_one_pair_of_factors() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)), nn.ReLU())
    model[0][1].weight = model[0][0].weight
    made, report = factorize(model, 8)
    assert made[0][0].led[0].weight is made[0][1].led[0].weight
    assert report.parameters_after == 8 * 80 + 80


def test_a_weight_that_an_embedding_shares_stays() -> None:
    body = nn.ModuleDict({"embedding": nn.Embedding(50, 40), "head": nn.Linear(40, 50)})
    body["head"].weight = body["embedding"].weight
    model = nn.ModuleDict({"body": body})
    made, report = factorize(model, 8)
    assert made["body"]["head"].weight is made["body"]["embedding"].weight
    assert "Embedding" in report.layers[0].reason


def test_factored_layers_stay_unless_asked_again(tower: Tower) -> None:
    once, _ = factorize(tower, 0.9)
    same, report = factorize(once, 0.2)
    assert same.body[4].rank == once.body[4].rank
    assert report.layers[2].reason == "factored already"
    less, _ = factorize(once, 0.2, again=True)
    assert less.body[4].rank < once.body[4].rank


def test_layers_that_others_look_into_stay_and_the_encoder_of_pytorch_is_right() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    made, report = factorize(model, 0.9)
    assert {one.kind for one in report.layers if one.reason} == {"NonDynamicallyQuantizableLinear"}
    x, mask = torch.randn(2, 5, 64), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        for padding in (None, mask):
            expected = merge(made)(x, src_key_padding_mask=padding)
            found = made(x, src_key_padding_mask=padding)
            real = slice(None) if padding is None else ~padding
            torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-4)
    hooked = nn.Sequential(nn.Sequential(nn.Linear(40, 40)))
    hooked[0][0].register_forward_hook(lambda *_: None)
    assert factorize(hooked, 8)[1].layers[0].reason == "it has hooks"


def test_ranks_from_an_error_and_from_a_budget(tower: Tower) -> None:
    for limit in (0.3, 0.6):
        _, report = factorize(tower, max_error=limit, limit="kernel")
        assert report.factored or limit == 0.3
        assert report.worst_error <= limit + 1e-6
    _, report = factorize(tower, energy=1.0, parameters=30_000, limit="kernel")
    assert sum(one.after for one in report.layers if one.reason != "a direct child of the root") <= 30_000
    with pytest.raises(UserError, match="exactly one"):
        factorize(tower, 8, energy=0.9)
    with pytest.raises(UserError, match="exactly one"):
        factorize(tower)
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(UserError, match="max_error"):
            factorize(tower, max_error=wrong)


@pytest.mark.parametrize("rank", [0, -4, math.nan, 3.5])
def test_bad_ranks_are_refused(tower: Tower, rank: float) -> None:
    with pytest.raises(UserError, match="rank"):
        factorize(tower, rank)


def test_all_or_nothing(tower: Tower) -> None:
    """nmf on signed weights is refused by name, and the model stays whole even in place."""
    with torch.no_grad():
        tower.body[0].weight.abs_()
        tower.body[2].weight.abs_()
    before = list(tower.state_dict())
    with pytest.raises(UserError, match=r"body\.4.*snmf"):
        factorize(tower, 0.5, "nmf", copy=False)
    assert list(tower.state_dict()) == before
    with torch.no_grad():
        tower.body[6].weight[0, 0] = math.inf
    with pytest.raises(UserError, match=r"body\.6.*finite"):
        factorize(tower, 0.5, copy=False)
    assert list(tower.state_dict()) == before
    with pytest.raises(UserError, match="solver"):
        factorize(tower, 0.5, "qr")


def test_a_layer_that_cannot_get_smaller_is_warned_of(tower: Tower) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, report = factorize(tower, 40)
    assert any("body.6 stays" in str(one.message) for one in caught)
    assert "body.6: 64 -> 48, stays" in str(report)


def test_it_trains_and_the_error_is_the_measured_one(tower: Tower) -> None:
    made, report = factorize(tower, 0.5)
    line = next(one for one in report.layers if one.name == "body.4")
    dense = tower.body[4].weight.detach()
    product = (made.body[4].led[1].weight @ made.body[4].led[0].weight).detach()
    assert line.error == pytest.approx(float((dense - product).norm() / dense.norm()), rel=1e-4)
    optimizer = torch.optim.SGD(made.parameters(), lr=2.0)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (made(X) - tower(X).detach()).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_computes_the_same(tower: Tower, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    made, _ = factorize(tower, 0.5)
    path = tmp_path / "tower.onnx"
    torch.onnx.export(made, (X,), str(path), dynamo=False, input_names=["x"], output_names=["y"])
    found = onnxruntime.InferenceSession(str(path)).run(None, {"x": X.numpy()})[0]
    np.testing.assert_allclose(found, made(X).detach().numpy(), atol=1e-5)
