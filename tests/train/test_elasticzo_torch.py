"""ElasticZO on networks in PyTorch, through the same protocol: small, and MobileNetV3 by residual blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

from tests.models.test_picture_nets import drawn  # noqa: E402

from haversack.core import index  # noqa: E402
from haversack.core.errors import UserError  # noqa: E402
from haversack.models.vision import mobilenetv3  # noqa: E402
from haversack.train._network import Batch  # noqa: E402
from haversack.train._slots import Settings  # noqa: E402
from haversack.train.gradient._spsa import Spsa  # noqa: E402
from haversack.train.gradient.elasticzo import ElasticZO, split  # noqa: E402
from haversack.train.networks.mobilenet_torch import PictureNetwork  # noqa: E402

TINY = mobilenetv3.record("mobilenetv3_tiny").with_classes(("a", "b", "c"))


def mobilenet() -> PictureNetwork:
    return PictureNetwork.of("small", TINY, drawn(TINY, 0))


def pictures(seed: int, rows: int = 8) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(rng.integers(0, 256, (rows, 32, 32, 3), np.uint8), rng.integers(0, 3, rows))


def prepared(network: Any, choice: str) -> Any:
    return index.create("train", "parameters", choice).prepare(network, 0)  # type: ignore[attr-defined]


def test_mobilenet_learns_its_last_blocks_by_the_way_back_and_the_rest_by_two_passes() -> None:
    network = mobilenet()
    learned = prepared(network, "bias")
    before = {name: array.copy() for name, array in network.tensors().items()}
    method = ElasticZO(backprop_layers="2", share=0.1)
    stepper = method.begin(network, learned, Settings(4, 8, 1))
    low, last = split(network, learned.wanted, "2", None)
    blocks = list(network.blocks.values())
    assert set(last) <= {*blocks[-1], *blocks[-2]} and set(low) | set(last) == set(learned.wanted)
    losses = [stepper.step(pictures(step), 0.05) for step in range(4)]
    assert np.isfinite(losses).all() and len(stepper.spsa.log) == 4
    changed = {name for name, array in network.tensors().items() if not np.array_equal(array, before[name])}
    assert changed <= set(learned.wanted) and changed & set(low) and changed & set(last)
    replayed = mobilenet()
    prepared(replayed, "bias")
    tensors = replayed.tensors()
    Spsa({name: tensors[name] for name in low}, eps=method.eps, seed=1).replay(stepper.spsa.log)
    for name in low:
        assert np.array_equal(tensors[name], network.tensors()[name]), name


def test_a_split_inside_a_residual_block_is_refused() -> None:
    network = mobilenet()
    learned = prepared(network, "bias")
    inside = network.blocks["blocks.4"][0]
    with pytest.raises(UserError, match=r"lies in the block blocks\.4"):
        ElasticZO(split=inside).begin(network, learned, Settings(4, 8, 1))


def test_a_small_network_learns(small: Any) -> None:
    network, rows = small.SmallCnn(), small.shades(48, 1)
    stepper = ElasticZO(backprop_layers="1").begin(network, prepared(network, "all"), Settings(60, 16, 0))
    before = network.loss(rows)
    for step in range(60):
        at = np.random.default_rng(step).integers(0, 48, 16)
        stepper.step(Batch(rows.inputs[at], rows.labels[at]), 0.2)
    assert network.loss(rows) < 0.8 * before
