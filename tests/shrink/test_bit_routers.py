"""Bit routers: trained to a target, the same choices in the engine as in training, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.experts import OLMOE
from tests.shrink.test_edgemoe import Source

from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackWriter
from haversack.models import read_architecture
from haversack.run import Engine
from haversack.run._levels import ROUTER_NAME, BitRouters
from haversack.shrink._bit_routers import train_bit_router
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress
from haversack.shrink.precision._nested import ForModel
from haversack.shrink.precision.d2moe import D2Moe

torch = pytest.importorskip("torch")
TEXTS = np.random.default_rng(7).integers(3, 280, (8, 64)).astype(np.int32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def pack(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    goal = tmp_path_factory.mktemp("routed") / "a.pack"
    method = D2Moe(group=32, target_bits=2.8, steps=12, capacity=".3/.4/.3", rest="f32")
    with PackWriter(goal) as writer:
        compress(
            source,
            LanguageWalk(read_architecture(OLMOE)),
            method,  # type: ignore[arg-type]
            writer,
            texts=TEXTS,
            policy=Policy(output="as-blocks", embedding="f32"),
            folder=goal.parent,
        )
        writer.finish({"architecture": OLMOE, "plan": {"precision": str(method)}})
    return goal


def test_a_pack_holds_routers_that_meet_their_target(pack: Path) -> None:
    counts = np.zeros(3, np.int64)
    with Engine.open(pack) as engine:
        engine.observe(lambda routing: np.add.at(counts, routing.levels.reshape(-1), 1))
        for text in TEXTS:
            engine.step(text, cache=engine.cache(64), want="none")
    assert (counts > 0).all()
    assert counts @ np.array([2, 3, 4]) / counts.sum() == pytest.approx(2.8, abs=0.06)


def made_of(pack: Path) -> dict[str, Any]:
    """The nested matrices of a pack as training has them."""
    from haversack.run._weights import bind
    from haversack.shrink.precision._nested import NestedTensor

    source = Pack.open(pack)
    bound = bind(source, list(source.forms))
    return {name: NestedTensor(tuple(one.planes), (2, 3, 4)) for name, one in bound.items()}


def test_training_computes_what_the_engine_does(source: Any, pack: Path) -> None:
    from haversack.shrink._bit_router_torch import Training

    walk = LanguageWalk(read_architecture(OLMOE))
    training = Training(source, walk, walk.all_experts, made_of(pack), None, 0)
    routers = BitRouters.of_bytes(Pack.open(pack).read_file(ROUTER_NAME), pack)
    with torch.no_grad():
        training.router += torch.from_numpy(routers.weights.astype(np.float32))
        training.bias += torch.from_numpy(routers.biases)
        tokens = torch.from_numpy(TEXTS[:1].astype(np.int64))
        full, mixed = training.logits(tokens, None)[0], training.logits(tokens, ())[0]
    for path, wanted in ((source, full), (pack, mixed)):
        with Engine.open(path) as engine:
            found, _ = engine.step(TEXTS[0], cache=engine.cache(64), want="all")
        assert np.abs(found - wanted.numpy()).max() < 2e-3 * np.abs(found).max()


def test_the_same_under_a_seed(source: Any, pack: Path) -> None:
    walk, made = LanguageWalk(read_architecture(OLMOE)), made_of(pack)

    def trained(steps: int, seed: int = 3) -> BitRouters:
        given = (source, walk, walk.all_experts, made, TEXTS)
        return train_bit_router(*given, target_bits=3.0, steps=steps, seed=seed)

    one, two = trained(6), trained(6)
    assert one.to_bytes() == two.to_bytes() != trained(6, seed=4).to_bytes()


def test_what_is_above_a_capacity_is_dropped_and_nothing_else() -> None:
    from haversack.shrink._bit_router_torch import dropped

    levels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    found = dropped(levels, (0.3, 0.4, 0.3), torch.Generator().manual_seed(1))
    assert [int(found[levels == level].sum()) for level in range(3)] == [2, 0, 0]


def test_what_cannot_be_trained_is_refused(source: Any) -> None:
    walk = LanguageWalk(read_architecture(OLMOE))
    made = {"a": _Tensor()}
    given = (source, walk, walk.all_experts, made, TEXTS)
    with pytest.raises(UserError, match="for target_bits or with alpha"):
        train_bit_router(*given)
    with pytest.raises(UserError, match=r"sum to 0\.9"):
        train_bit_router(*given, target_bits=3.0, capacity=(0.3, 0.3, 0.3))
    with pytest.raises(UserError, match="2 shares for 3 levels"):
        train_bit_router(*given, target_bits=3.0, capacity=(0.5, 0.5))
    assert ForModel(D2Moe(), walk.all_experts).finish(source, walk, TEXTS, 0) == {}  # type: ignore[arg-type]


class _Tensor:
    bits = (2, 3, 4)
