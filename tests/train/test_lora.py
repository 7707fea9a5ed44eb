"""LoRA: beside its matrices or merged into them, the same; nothing of an anchor; the same under a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core import index
from haversack.core.errors import UserError
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.models._adapter import Pair, merged
from haversack.train.parameters.lora import Lora, applied, drawn


def architecture_of(base: Path) -> Any:
    return read_architecture(HubFolder.open(base).config)


def test_beside_equals_merged() -> None:
    rng = np.random.default_rng(0)
    values, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((48, 32), (5, 32)))
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 32), (48, 4)))
    pair = Pair("m", 0, first, second, 0.5)
    beside = x @ values.T + applied(x, pair)
    assert np.abs(beside - x @ merged(values, pair).T).max() < 1e-4


def test_a_block_with_lora_beside_equals_one_with_it_merged(base: Path) -> None:
    torch = pytest.importorskip("torch")
    from haversack.models._blocks_torch import block_forward
    from haversack.run._source import open_model
    from haversack.train._model_torch import FloatModel

    model = FloatModel(open_model(base))
    learned: Any = Lora(rank=4).begin(model.architecture, 1, 0, model.device)
    with torch.no_grad():
        for name, value in learned.module.named_parameters():
            if name.endswith("#B"):
                value.copy_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    block = model.architecture.blocks[2]
    hidden = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(2))
    pairs = learned.pairs(dict(learned.module.named_parameters()))
    weights = dict(model.weights)
    for name, pair in pairs.items():
        weights[name] = torch.from_numpy(merged(model.weights[name].numpy(), pair))
    with torch.no_grad():
        beside = block_forward(block, hidden, model.weights, learned.hooks)
        whole = block_forward(block, hidden, weights)
        plain = block_forward(block, hidden, model.weights)
    assert float((beside - whole).abs().max()) < 1e-4 < 1e-2 < float((beside - plain).abs().max())


def test_what_changes(base: Path) -> None:
    architecture = architecture_of(base)
    chosen = Lora().chosen(architecture, 1)
    assert {block for block, _, _ in chosen.values()} == {1, 2, 3} and len(chosen) == 21
    assert Lora(modules="attention").chosen(architecture, 1).keys() < chosen.keys()
    assert len(Lora(modules="attention").chosen(architecture, 1)) == 12
    assert len(Lora(modules="feed-forward", first=3).chosen(architecture, 1)) == 3
    assert Lora(rank=2, modules="feed-forward", first=3).learned_numbers(architecture, 0) == 2 * 3 * 160


@pytest.mark.parametrize(
    ("parameters", "above", "said"),
    [
        ({"first": 0}, 1, "is a block of the anchor"),
        ({"first": 2}, 3, "is a block of the anchor"),
        ({"first": 4}, 0, "leaves no block to change"),
    ],
)
def test_an_anchor_is_not_touched(base: Path, parameters: Any, above: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        Lora(**parameters).chosen(architecture_of(base), above)
    assert refused.value.field == "first"


@pytest.mark.parametrize("text", ["rank=3", "alpha=0", "alpha=-1", "first=-1", "modules=norms", "beta=1"])
def test_bad_parameters_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        index.create("train", "parameters", f"lora:{text}")


def test_factors_follow_from_the_seed() -> None:
    shapes = {"a": (8, 16), "b": (8, 4)}
    first, again, other = drawn(shapes, 2, 1), drawn(shapes, 2, 1), drawn(shapes, 2, 2)
    assert all(np.array_equal(first[name], again[name]) for name in shapes)
    assert not np.array_equal(first["a"], other["a"])
    assert np.abs(first["a"]).max() <= 0.25 and first["b"].shape == (2, 4)


def test_a_random_change_has_the_norm_that_was_asked_for(base: Path) -> None:
    torch = pytest.importorskip("torch")
    from haversack.train.parameters.lora_torch import perturbation

    weights = {"a": torch.randn(40, 24), "b": 3 * torch.randn(16, 64)}
    found = perturbation(weights, ["a", "b"], 0.02, 8, torch.Generator().manual_seed(0))
    for name, (first, second, scale) in found.items():
        change = scale * second @ first
        assert float(change.norm() / weights[name].norm()) == pytest.approx(0.02, rel=1e-4)
